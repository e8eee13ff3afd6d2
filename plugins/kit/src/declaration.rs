//! What a plugin says of itself, readable without running it: a custom section of
//! its core module, `switchyard:plugin`, with a JSON object.
//!
//! `on_failure` is what holds while the plugin cannot answer, if the operator does
//! not say otherwise: `closed` refuses what the plugin cannot decide, `open`
//! lets it through. It cannot be said by a call, because `init` may be what fails.

/// Declares the plugin that this crate is: its version is the crate's, and so is its name if none
/// is given.
///
/// ```ignore
/// plugin_kit::declare!(on_failure: "closed");
/// plugin_kit::declare!(name: "acl", on_failure: "closed");
/// ```
#[macro_export]
macro_rules! declare {
    (on_failure: $on_failure:literal) => {
        $crate::declare!(name: env!("CARGO_PKG_NAME"), on_failure: $on_failure);
    };
    (name: $name:expr, on_failure: $on_failure:literal) => {
        // A link section counts as unsafe because the wrong one can make a program
        // do anything. A custom section of a WebAssembly module is only ever read.
        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, reason = "the only way to name a section")]
        mod declaration {
            const TEXT: &str = concat!(
                r#"{"name":""#,
                $name,
                r#"","version":""#,
                env!("CARGO_PKG_VERSION"),
                r#"","on_failure":""#,
                $on_failure,
                r#""}"#
            );

            #[used]
            #[unsafe(link_section = "switchyard:plugin")]
            static DECLARATION: [u8; TEXT.len()] = $crate::declaration::bytes(TEXT);
        }
    };
}

/// The bytes of a text of this length.
pub const fn bytes<const LENGTH: usize>(text: &str) -> [u8; LENGTH] {
    match text.as_bytes().first_chunk() {
        Some(bytes) => *bytes,
        None => [0; LENGTH],
    }
}
