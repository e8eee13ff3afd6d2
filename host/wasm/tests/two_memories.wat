;; Two modules, each with a memory of its own that starts with one page.
(component
    (core module $module
        (memory 1)
        (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))
    (core instance $a (instantiate $module))
    (core instance $b (instantiate $module))
    (func (export "grow-a") (param "pages" s32) (result s32)
        (canon lift (core func $a "grow")))
    (func (export "grow-b") (param "pages" s32) (result s32)
        (canon lift (core func $b "grow"))))
