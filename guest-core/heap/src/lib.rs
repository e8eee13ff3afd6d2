//! Small blocks of memory at hand in a component, whose calls take and free several each.
//!
//! Every list that the host passes in is a block, and so is every list that goes back. The
//! allocator of wasi-libc (dlmalloc) takes some 600 instructions for one and for giving it
//! back, which is more than most calls have to do otherwise. So blocks that are freed are
//! kept, a few of each size, and given out again; all come from that allocator and go back
//! to it, so that memory that C code allocates may be freed here, and the other way round.
//!
//! A component that links this crate uses it for everything, and has nothing to call.

#![allow(unsafe_code, reason = "an allocator works with memory that has no owner")]
#![allow(clippy::indexing_slicing, reason = "classes are bounded where they are made")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::ptr::null_mut;

/// What sizes of blocks differ by: dlmalloc's blocks are multiples of it, less their head.
const STEP: usize = 16;
/// The head of a block.
const HEAD: usize = 4;
/// One more than the largest class: blocks of up to 1 KiB are kept.
const CLASSES: usize = 65;
/// How many of each class are kept: some 2 MiB together at most.
const KEPT_MAX: u32 = 64;
/// What all blocks are aligned to.
const ALIGN: usize = 8;

unsafe extern "C" {
    fn malloc_usable_size(block: *mut c_void) -> usize;
}

/// A block that is kept: the next of its class stands in it.
struct Block {
    next: *mut Block,
}

#[derive(Clone, Copy)]
struct Class {
    first: *mut Block,
    kept: u32,
}

/// The system's allocator, with blocks at hand. For one thread, which is all that a component
/// has.
pub struct Heap {
    classes: UnsafeCell<[Class; CLASSES]>,
}

// SAFETY: a component has one thread. Elsewhere, `Heap` is used by tests, each its own.
#[cfg(target_family = "wasm")]
unsafe impl Sync for Heap {}

#[cfg(target_family = "wasm")]
#[global_allocator]
static HEAP: Heap = Heap::new();

/// How the host takes memory for what it passes in. Stands instead of wasi-libc's, which would
/// ask dlmalloc.
///
/// # Safety
///
/// The canonical ABI's `realloc`: the block is one that this gave, of the old length.
#[cfg(target_family = "wasm")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabi_realloc(
    old: *mut u8,
    old_length: usize,
    align: usize,
    length: usize,
) -> *mut u8 {
    if length == 0 {
        return std::ptr::without_provenance_mut(align);
    }
    let Ok(layout) = Layout::from_size_align(length, align) else { std::process::abort() };
    // SAFETY: the caller keeps to what `realloc` is promised.
    let block = unsafe {
        match Layout::from_size_align(old_length, align) {
            Ok(old_layout) if old_length > 0 => HEAP.realloc(old, old_layout, length),
            _ => HEAP.alloc(layout),
        }
    };
    if block.is_null() {
        std::process::abort();
    }
    block
}

impl Heap {
    /// Nothing at hand.
    pub const fn new() -> Heap {
        Heap { classes: UnsafeCell::new([Class { first: null_mut(), kept: 0 }; CLASSES]) }
    }

    /// The class that has room for so many bytes; none: it is too large to be kept, or aligned
    /// to more than blocks are.
    fn class_for(layout: Layout) -> Option<usize> {
        let class = (layout.size() + HEAD).div_ceil(STEP);
        (layout.align() <= ALIGN && class < CLASSES).then_some(class)
    }

    /// How many bytes the blocks of a class have at least.
    const fn bytes_of(class: usize) -> usize {
        class * STEP - HEAD
    }

    /// Calls the system's allocator. If it fails, all kept blocks are freed and it is called
    /// again: they may use the memory that is missing.
    fn allocate_from_system(&self, allocate: impl Fn() -> *mut u8) -> *mut u8 {
        let block = allocate();
        if !block.is_null() {
            return block;
        }
        for class in 1..CLASSES {
            while let Some(kept) = self.take(class) {
                let layout = Layout::new::<[u8; STEP]>();
                // SAFETY: it came from there, and the size is not looked at.
                unsafe { System.dealloc(kept, layout) };
            }
        }
        allocate()
    }

    fn take(&self, class: usize) -> Option<*mut u8> {
        // SAFETY: one thread, and no reference outlives this function.
        let class = unsafe { &mut (&mut *self.classes.get())[class] };
        if class.first.is_null() {
            return None;
        }
        let block = class.first;
        // SAFETY: what is kept are blocks with a pointer to the next in them.
        class.first = unsafe { (*block).next };
        class.kept -= 1;
        Some(block.cast())
    }

    /// Whether it is kept.
    fn keep(&self, block: *mut u8, layout: Layout) -> bool {
        if Heap::class_for(layout).is_none() {
            return false;
        }
        // SAFETY: it is a block of the system's allocator.
        let usable = unsafe { malloc_usable_size(block.cast()) };
        // It may be larger than was requested, or than this allocator would have allocated.
        let class = (usable + HEAD) / STEP;
        if class == 0 || class >= CLASSES {
            return false;
        }
        // SAFETY: as in `take`.
        let class = unsafe { &mut (&mut *self.classes.get())[class] };
        if class.kept >= KEPT_MAX {
            return false;
        }
        let block: *mut Block = block.cast();
        // SAFETY: it is free, large enough, and aligned as all blocks are.
        unsafe { block.write(Block { next: class.first }) };
        class.first = block;
        class.kept += 1;
        true
    }
}

impl Default for Heap {
    fn default() -> Heap {
        Heap::new()
    }
}

// SAFETY: blocks are those of the system's allocator, and at least as large as was requested.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(class) = Heap::class_for(layout) else {
            // SAFETY: promised by the caller.
            return self.allocate_from_system(|| unsafe { System.alloc(layout) });
        };
        if let Some(block) = self.take(class) {
            return block;
        }
        // SAFETY: the size is not zero, and the alignment a power of two.
        self.allocate_from_system(|| unsafe {
            System.alloc(Layout::from_size_align_unchecked(Heap::bytes_of(class), ALIGN))
        })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if !self.keep(block, layout) {
            // SAFETY: the system's allocator needs no size.
            unsafe { System.dealloc(block, layout) };
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if Heap::class_for(layout).is_none() {
            // SAFETY: promised by the caller.
            return self.allocate_from_system(|| unsafe { System.alloc_zeroed(layout) });
        }
        // SAFETY: promised by the caller.
        let block = unsafe { self.alloc(layout) };
        if !block.is_null() {
            // SAFETY: it has so many bytes.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if Heap::class_for(layout).is_none() {
            // SAFETY: promised by the caller.
            return self.allocate_from_system(|| unsafe { System.realloc(block, layout, size) });
        }
        // SAFETY: it is a block of the system's allocator.
        if size <= unsafe { malloc_usable_size(block.cast()) } {
            return block;
        }
        // SAFETY: promised by the caller; the new block is larger.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                block.copy_to_nonoverlapping(new, layout.size());
                self.dealloc(block, layout);
            }
            new
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_core::model::Random;

    /// A block in use, and the byte that fills it.
    struct Used {
        block: *mut u8,
        layout: Layout,
        filling: u8,
    }

    impl Used {
        fn take(heap: &Heap, layout: Layout, filling: u8, is_zeroed: bool) -> Used {
            // SAFETY: no size is zero.
            let block =
                unsafe { if is_zeroed { heap.alloc_zeroed(layout) } else { heap.alloc(layout) } };
            assert!(!block.is_null() && block.addr().is_multiple_of(layout.align()));
            let used = Used { block, layout, filling };
            if is_zeroed {
                used.check(0, layout.size());
            }
            used.fill();
            used
        }

        fn fill(&self) {
            // SAFETY: it has so many bytes.
            unsafe { self.block.write_bytes(self.filling, self.layout.size()) };
        }

        fn check(&self, expected: u8, size: usize) {
            // SAFETY: it has so many bytes, and they were written.
            let bytes = unsafe { std::slice::from_raw_parts(self.block, size) };
            assert!(bytes.iter().all(|byte| *byte == expected), "another block wrote here");
        }

        fn resize(&mut self, heap: &Heap, size: usize) {
            // SAFETY: the block is in use with this layout.
            self.block = unsafe { heap.realloc(self.block, self.layout, size) };
            assert!(!self.block.is_null());
            self.check(self.filling, size.min(self.layout.size()));
            self.layout = Layout::from_size_align(size, self.layout.align()).expect("it is small");
            self.fill();
        }

        fn give_back(self, heap: &Heap) {
            self.check(self.filling, self.layout.size());
            // SAFETY: the block is in use with this layout.
            unsafe { heap.dealloc(self.block, self.layout) };
        }
    }

    #[test]
    fn blocks_of_any_requested_layout_do_not_overlap() {
        let mut random = Random::from_environment();
        let heap = Heap::new();
        let mut used: Vec<Used> = Vec::new();
        for _ in 0..200_000 {
            let size = 1 + match random.below(10) {
                0 => random.index(5_000),
                1..4 => random.index(1_100),
                _ => random.index(80),
            };
            let filling = random.below(256) as u8;
            match random.below(8) {
                0..3 => {
                    let align = 1 << random.below(6);
                    let layout = Layout::from_size_align(size, align).expect("it is small");
                    used.push(Used::take(&heap, layout, filling, random.below(2) == 0));
                }
                3 if !used.is_empty() => {
                    let place = random.index(used.len());
                    used[place].resize(&heap, size);
                }
                4 => {
                    // Memory of C code that is freed here.
                    let layout = Layout::from_size_align(size, ALIGN).expect("it is small");
                    // SAFETY: no size is zero.
                    let block = unsafe { System.alloc(layout) };
                    let foreign = Used { block, layout, filling };
                    foreign.fill();
                    used.push(foreign);
                }
                5 if !used.is_empty() => {
                    // Memory from here that C code frees.
                    let Used { block, layout, .. } = used.swap_remove(random.index(used.len()));
                    // SAFETY: all blocks are the system's.
                    unsafe { System.dealloc(block, layout) };
                }
                _ if !used.is_empty() => {
                    used.swap_remove(random.index(used.len())).give_back(&heap);
                }
                _ => {}
            }
        }
        used.into_iter().for_each(|used| used.give_back(&heap));
    }

    #[test]
    fn no_more_are_kept_than_the_limit() {
        let heap = Heap::new();
        let layout = Layout::from_size_align(100, 1).expect("it is small");
        let used: Vec<Used> = (0..1_000).map(|_| Used::take(&heap, layout, 1, false)).collect();
        used.into_iter().for_each(|used| used.give_back(&heap));
        assert_eq!(kept(&heap), [KEPT_MAX]);
    }

    #[test]
    fn what_is_kept_is_given_back_when_there_is_no_room() {
        let heap = Heap::new();
        for size in [1, 20, 1_000] {
            let layout = Layout::from_size_align(size, 1).expect("it is small");
            Used::take(&heap, layout, 1, false).give_back(&heap);
        }
        assert_eq!(kept(&heap), [1, 1, 1]);
        let too_large = Layout::from_size_align(isize::MAX as usize - 100, 1).expect("it fits");
        // SAFETY: the size is not zero.
        assert!(unsafe { heap.alloc(too_large) }.is_null());
        assert_eq!(kept(&heap), []);
    }

    /// How many are kept of each class that has any.
    fn kept(heap: &Heap) -> Vec<u32> {
        // SAFETY: the test holds no other reference to the classes.
        let classes = unsafe { &*heap.classes.get() };
        classes.iter().map(|class| class.kept).filter(|kept| *kept > 0).collect()
    }
}
