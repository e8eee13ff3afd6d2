//! Publications with a key: the second one on a channel is answered as the first, and not published.
//!
//! The keys of a batch are claimed all at once, so that two batches with the same keys cannot wait
//! for each other. A key that was claimed is always settled: by the answer, or by dropping this.

use super::{Pending, Underway};
use crate::session::Services;
use switchyard_history::Claim;
use switchyard_hub::history::History;
use switchyard_types::batch::Batch;
use switchyard_types::command::{Published, Refusal};

/// A key, with the channel as it was named.
pub(super) type Key = (Vec<u8>, Box<str>);

/// The keys of a batch that have not been answered yet.
pub(super) struct ClaimedKeys<'s> {
    history: &'s History,
    /// Each with the place of its publication.
    claimed: Batch<(usize, Key)>,
    /// The answers that other publications of the batch have in common, by place.
    answers: Batch<(usize, Result<Published, Refusal>)>,
    has_duplicates: bool,
}

impl<'s> ClaimedKeys<'s> {
    /// No keys.
    pub fn none(services: &'s Services) -> ClaimedKeys<'s> {
        ClaimedKeys {
            history: services.hub.history(),
            claimed: Batch::new(),
            answers: Batch::new(),
            has_duplicates: false,
        }
    }

    /// Claims the keys of the publications that are allowed so far. A publication whose key was
    /// answered before is settled.
    pub fn claim(services: &'s Services, entries: &mut [Underway<'_>]) -> ClaimedKeys<'s> {
        let mut keys = ClaimedKeys::none(services);
        let with_key: Vec<(usize, Key)> = entries
            .iter()
            .enumerate()
            .filter_map(|(place, entry)| {
                let Pending::Open(publication) = &entry.pending else { return None };
                let key = publication.options.as_ref()?.key.clone()?;
                Some((place, (publication.channel.to_vec(), key)))
            })
            .collect();
        if with_key.is_empty() {
            return keys;
        }
        let names: Vec<_> =
            with_key.iter().map(|(_, (channel, key))| (&channel[..], key.as_bytes())).collect();
        let claims = keys.history.claim(&names);
        let places: Vec<usize> = with_key.iter().map(|(place, _)| *place).collect();
        for ((place, key), claim) in with_key.into_iter().zip(&claims) {
            let first = match claim {
                Claim::Duplicate(index) => claims.get(*index).map(|first| (first, *index)),
                Claim::New | Claim::Done(_) => None,
            };
            let pending = match (claim, first) {
                (Claim::Done(answer), _) | (_, Some((Claim::Done(answer), _))) => {
                    Pending::Settled(Ok(*answer))
                }
                (_, Some((_, index))) => {
                    keys.has_duplicates = true;
                    Pending::SameAs(places.get(index).copied().unwrap_or(place))
                }
                (_, None) => {
                    keys.claimed.push((place, key));
                    continue;
                }
            };
            if let Some(entry) = entries.get_mut(place) {
                entry.pending = pending;
            }
        }
        keys
    }

    /// Records what became of the publication at a place. A refusal is not remembered.
    pub fn settle(&mut self, place: usize, answer: Result<Published, &Refusal>) {
        if self.claimed.is_empty() {
            return;
        }
        let Some(at) = self.claimed.iter().position(|(of, _)| *of == place) else { return };
        let (_, (channel, key)) = self.claimed.remove(at);
        self.history.settle(&channel, key.as_bytes(), answer.ok());
        if self.has_duplicates {
            self.answers.push((place, answer.map_err(Refusal::clone)));
        }
    }

    /// The answer to the publication at an earlier place.
    pub fn answer(&self, place: usize) -> Option<Result<Published, &Refusal>> {
        let (_, answer) = self.answers.iter().find(|(of, _)| *of == place)?;
        Some(answer.as_ref().copied())
    }
}

impl Drop for ClaimedKeys<'_> {
    fn drop(&mut self) {
        for (_, (channel, key)) in self.claimed.drain(..) {
            self.history.settle(&channel, key.as_bytes(), None);
        }
    }
}
