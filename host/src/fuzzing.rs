//! Looks for inputs that the codecs do not bear.
//!
//! A [`Target`] takes any bytes, so libFuzzer could drive it; `tests/fuzz` drives
//! it with mutations of what the tests' conversations say. Which inputs are worth
//! keeping to start from again it tells by the traits it answers. None of this is
//! in the server: it is here because only the crate sees its codecs.

pub use guest_core::model::Random;

pub use crate::protocol::json::fuzzing::JSON;
pub use crate::protocol::resp::fuzzing::RESP;

/// A codec, and what it must hold to.
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// Inputs to start from, besides what conversations say.
    pub corpus: fn() -> Vec<Vec<u8>>,
    /// How it is written.
    pub syntax: Syntax<'static>,
    /// Takes the input in many ways, and panics when that makes a difference, or
    /// when the codec does what it must not. The first byte chooses limits. Answers
    /// what kind of input it was.
    pub check: fn(&[u8]) -> u64,
    /// Takes the same input as a server would, piece by piece, and keeps nothing.
    pub serve: fn(&[u8]),
    /// The heap that `serve` may hold for each byte of the input, ...
    pub heap_per_byte_max: usize,
    /// ... and besides that.
    pub heap_kept_max: usize,
}

/// How a protocol is written.
pub struct Syntax<'a> {
    /// What it is made of.
    pub tokens: &'a [&'a [u8]],
    /// What stands before, between and behind several commands.
    pub several: [&'a [u8]; 3],
}

impl Syntax<'_> {
    /// Several inputs as one.
    pub fn join<T: AsRef<[u8]>>(&self, inputs: &[T]) -> Vec<u8> {
        let [before, between, behind] = self.several;
        let inputs: Vec<_> = inputs.iter().map(AsRef::as_ref).collect();
        [before, &inputs.join(between), behind].concat()
    }
}

/// A few inputs, one after the other, after a few random changes.
pub fn mutation(random: &mut Random, corpus: &[Vec<u8>], syntax: &Syntax<'_>) -> Vec<u8> {
    let inputs: Vec<_> = (0..=random.index(3)).map(|_| random.pick(corpus)).collect();
    let mut input = match random.index(2) {
        0 => inputs.into_iter().flatten().copied().collect(),
        _ => syntax.join(&inputs),
    };
    for _ in 0..random.index(6) {
        let at = random.index(input.len() + 1);
        let end = input.len().min(at + random.index(12));
        match random.index(6) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..end)),
            2 => {
                let copy = input.get(at..end).unwrap_or_default().to_vec();
                insert(&mut input, at, &copy);
            }
            3 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = random.index(256) as u8;
                }
            }
            4 => {
                let other = random.pick(corpus).clone();
                insert(&mut input, at, &other);
            }
            _ => insert(&mut input, at, random.pick::<&[u8]>(syntax.tokens)),
        }
    }
    input
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}

/// Cuts of an input that the input itself decides, so that it can be repeated:
/// none, everywhere, and some at random; for a short one also each single one.
pub(crate) fn cuts_of(input: &[u8], mut each: impl FnMut(&[usize])) {
    each(&[]);
    each(&(1..input.len()).collect::<Vec<_>>());
    if input.len() <= 256 {
        (1..input.len()).for_each(|cut| each(&[cut]));
    }
    let mut random = Random::new(fingerprint(input));
    for pieces in [2, 3, 5, 10] {
        let mut cuts: Vec<_> = (1..pieces).map(|_| random.index(input.len() + 1)).collect();
        cuts.sort_unstable();
        each(&cuts);
    }
}

/// A number that is the same for the same thing, in every run.
pub(crate) fn fingerprint(thing: impl std::hash::Hash) -> u64 {
    use std::hash::BuildHasher as _;
    rustc_hash::FxBuildHasher.hash_one(thing)
}

/// How often a unit test tries: `SWITCHYARD_FUZZ_ITERATIONS`, or so often.
#[cfg(test)]
pub(crate) fn iterations() -> usize {
    match std::env::var("SWITCHYARD_FUZZ_ITERATIONS") {
        Ok(iterations) => iterations.parse().expect("a number of iterations"),
        Err(_) => 2_000,
    }
}
