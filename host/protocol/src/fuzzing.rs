//! Fuzzing of the codecs.
//!
//! A [`Target`] accepts any bytes, so libFuzzer could drive it; `tests/fuzz` drives it with
//! mutations of the tests' conversations. The traits that it returns decide which inputs are kept
//! in the corpus. None of this is in the server: it is here because the codecs are private to the
//! crate.

pub use guest_core::model::Random;

/// A codec, and the checks for it.
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Initial inputs, besides the conversations.
    pub corpus: fn() -> Vec<Vec<u8>>,
    /// The grammar for mutations.
    pub syntax: Syntax<'static>,
    /// Processes the input in many ways, and panics if the results differ or the codec violates its
    /// contract. The first byte selects limits. Returns the traits of the input.
    pub check: fn(&[u8]) -> u64,
    /// Processes the input as a server would, piece by piece, and keeps nothing.
    pub serve: fn(&[u8]),
    /// The heap that `serve` may hold for each byte of the input, ...
    pub heap_per_byte_max: usize,
    /// ... and besides that.
    pub heap_kept_max: usize,
}

/// The grammar of a protocol.
pub struct Syntax<'a> {
    /// Its tokens.
    pub tokens: &'a [&'a [u8]],
    /// The text before, between and after several commands.
    pub several: [&'a [u8]; 3],
}

impl Syntax<'_> {
    /// Joins several inputs.
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

/// Splits of an input that are derived from the input itself, so that they are reproducible: none,
/// everywhere, and some at random; for a short one also each single split.
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

/// A hash that is the same in every run.
pub(crate) fn fingerprint(thing: impl std::hash::Hash) -> u64 {
    use std::hash::BuildHasher as _;
    rustc_hash::FxBuildHasher.hash_one(thing)
}

/// The number of iterations of a unit test: `SWITCHYARD_FUZZ_ITERATIONS`, or this many.
#[cfg(test)]
pub(crate) fn iterations() -> usize {
    match std::env::var("SWITCHYARD_FUZZ_ITERATIONS") {
        Ok(iterations) => iterations.parse().expect("a number of iterations"),
        Err(_) => 2_000,
    }
}
