//! The sentences of the client protocol about presence, as far as this crate decides them.
//!
//! Each test is named for a sentence. It calls `Rooms` and compares short texts: `7:ann=1` is
//! connection 7 of the user ann with the data 1.

#[cfg(test)]
mod ending;
#[cfg(test)]
mod events;
#[cfg(test)]
mod grace;
#[cfg(test)]
mod members;
#[cfg(test)]
mod scene;
#[cfg(test)]
mod watching;
