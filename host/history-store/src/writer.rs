//! The thread that writes.
//!
//! It wakes up every `flush_time`, reads what changed, writes it in transactions, and has the disk
//! synchronised. If that fails, no publication waits for it: it opens the database again some time
//! later, looks at what is in it, and writes the rest.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing::{error, info, warn};

use crate::disk::{Batch, Disk, DiskError};
use crate::error::NotClean;
use crate::index::Index;
use crate::load;
use crate::memory::Memory;
use crate::state::{EPOCHS_RESERVED_US, State};
use crate::status::{Status, Summary};

/// How long after a failure the thread tries again, at first and at most.
const RETRY_TIME: Duration = Duration::from_millis(500);
const RETRY_TIME_MAX: Duration = Duration::from_secs(30);
/// Answers in one value.
const ANSWERS_MAX: usize = 1_000;

pub(crate) struct Writer {
    pub directory: PathBuf,
    pub batch_bytes_max: usize,
    pub memory: Arc<dyn Memory>,
    pub shared: Arc<Shared>,
    pub state: State,
    /// None: it failed, and is to be opened again.
    pub disk: Option<Disk>,
    pub index: Index,
    /// Whether the database has nothing but what this process began to write, and not all of that.
    pub is_new: bool,
    /// Streams to remove from the database.
    pub removed: Vec<u64>,
    pub _lock: File,
}

/// What the thread and the server share.
pub(crate) struct Shared {
    orders: Mutex<Orders>,
    ordered: Condvar,
    status: Mutex<(Status, Instant)>,
}

struct Orders {
    flush_time: Duration,
    is_closing: bool,
}

impl Shared {
    pub fn new(flush_time: Duration, read: Summary) -> Shared {
        let orders = Orders { flush_time, is_closing: false };
        Shared {
            orders: Mutex::new(orders),
            ordered: Condvar::new(),
            status: Mutex::new((Status { read, ..Status::default() }, Instant::now())),
        }
    }

    pub fn set_flush_time(&self, time: Duration) {
        self.orders.lock().flush_time = time;
        self.ordered.notify_all();
    }

    pub fn close(&self) {
        self.orders.lock().is_closing = true;
        self.ordered.notify_all();
    }

    pub fn status(&self) -> Status {
        let (status, whole) = &*self.status.lock();
        Status { age: whole.elapsed(), ..status.clone() }
    }

    /// Waits for the next flush, from `since` on, and for `at_least`. Returns whether the store closes.
    fn wait(&self, since: Instant, at_least: Duration) -> bool {
        let mut orders = self.orders.lock();
        while !orders.is_closing {
            let time = orders.flush_time.max(at_least);
            let Some(left) = time.checked_sub(since.elapsed()).filter(|left| !left.is_zero())
            else {
                return false;
            };
            self.ordered.wait_for(&mut orders, left);
        }
        true
    }
}

impl Writer {
    /// Writes until the store closes, and then says how that went.
    pub fn run(mut self, closed: &Sender<Result<(), NotClean>>) {
        let result = self.write_until_closed();
        // The directory is free before anybody knows.
        drop(self);
        let _whether_or_not = closed.send(result);
    }

    fn write_until_closed(&mut self) -> Result<(), NotClean> {
        let mut retry_time = Duration::ZERO;
        loop {
            let is_closing = self.shared.wait(Instant::now(), retry_time);
            if let Err(problem) = self.flush() {
                let is_first = retry_time.is_zero();
                retry_time = (2 * retry_time).clamp(RETRY_TIME, RETRY_TIME_MAX);
                self.failed(&problem, is_first, retry_time);
                if is_closing {
                    return Err(NotClean::Failed(problem.to_string()));
                }
                continue;
            }
            self.succeeded();
            if !std::mem::take(&mut retry_time).is_zero() {
                info!("the history is written again");
            }
            // What was published since the flush is written by the next one, at once.
            if is_closing && self.memory.seal() {
                return self.close();
            }
        }
    }

    /// Writes everything that changed.
    fn flush(&mut self) -> Result<(), DiskError> {
        if self.disk.is_some() && !(Disk::exists(&self.directory) && State::exists(&self.directory))
        {
            // What is written to files that were removed is lost with the process.
            self.state.epochs_below = 0;
            self.is_new = true;
            return Err(DiskError::Other("its files were removed".to_owned()));
        }
        self.reserve_epochs().map_err(DiskError::Io)?;
        let mut unseen = None;
        if self.disk.is_none() {
            let disk = self.reopen()?;
            unseen = Some(self.index.ids().collect::<std::collections::HashSet<u64>>());
            self.disk = Some(disk);
            self.memory.record_all();
        }
        let Some(disk) = &self.disk else { return Ok(()) };
        let mut batch = disk.batch();
        let mut messages = 0;
        // Answers first: what they are the answers to is in memory then, and follows.
        let kept_ms = self.memory.idempotency_ms();
        let before_ms = match unseen {
            None => (self.memory.now_us() / 1_000).saturating_sub(kept_ms),
            // All are written again.
            Some(_) => u64::MAX,
        };
        self.index.remove_answers(disk, &mut batch, before_ms);
        loop {
            let answers = self.memory.unwritten_keys();
            if answers.is_empty() {
                break;
            }
            for block in answers.chunks(ANSWERS_MAX) {
                self.index.write_answers(disk, &mut batch, block);
            }
            write_if(disk, &mut batch, self.batch_bytes_max, &self.shared)?;
        }
        for id in std::mem::take(&mut self.removed) {
            self.index.remove(disk, &mut batch, id);
        }
        loop {
            let index = &self.index;
            let changes = self.memory.changes(&|id| index.last(id), self.batch_bytes_max);
            for id in changes.ended {
                self.index.remove(disk, &mut batch, id);
            }
            for change in changes.changed {
                if let Some(unseen) = &mut unseen {
                    unseen.remove(&change.stream.id);
                }
                messages += self.index.write(disk, &mut batch, &change);
                write_if(disk, &mut batch, self.batch_bytes_max, &self.shared)?;
            }
            if changes.is_done {
                break;
            }
        }
        for id in unseen.into_iter().flatten() {
            self.index.remove(disk, &mut batch, id);
        }
        let is_changed = batch.bytes > 0 || messages > 0;
        write_if(disk, &mut batch, 0, &self.shared)?;
        if is_changed {
            disk.sync()?;
        }
        self.is_new = false;
        self.shared.status.lock().0.messages += messages;
        Ok(())
    }

    /// The bound above all epochs is written before an epoch passes it.
    fn reserve_epochs(&mut self) -> io::Result<()> {
        let last = self.memory.last_epoch();
        if last.saturating_add(EPOCHS_RESERVED_US / 2) < self.state.epochs_below {
            return Ok(());
        }
        let epochs_below = last.max(self.memory.now_us()).saturating_add(EPOCHS_RESERVED_US);
        let state = State { epochs_below, clean: None };
        state.write(&self.directory)?;
        self.state = state;
        Ok(())
    }

    /// Opens the database after a failure. One that is damaged is set aside.
    fn reopen(&mut self) -> Result<Disk, DiskError> {
        let opened = Disk::open(&self.directory).and_then(|disk| {
            self.index = load::index(&disk)?;
            Ok(disk)
        });
        match opened {
            // Memory has what is in it. Else each retry on a full disk could set one aside.
            Err(DiskError::Damaged(_)) if self.is_new => {
                Disk::remove_files(&self.directory).map_err(DiskError::Io)?;
                self.index = Index::default();
                Disk::open(&self.directory)
            }
            Err(DiskError::Damaged(problem)) => {
                let name = format!("damaged-{}", self.memory.now_us() / 1_000_000);
                self.replace(&name, &problem).map_err(DiskError::Io)?;
                self.disk.take().ok_or(DiskError::Other(problem))
            }
            opened => opened,
        }
    }

    /// Sets a damaged database aside, and begins a new one, into which everything is written.
    pub fn replace(&mut self, name: &str, problem: &str) -> io::Result<()> {
        if let Some(disk) = self.disk.take() {
            disk.close();
        }
        let aside = Disk::set_aside(&self.directory, name)?;
        let set_aside = aside.display();
        error!(problem, %set_aside, "the history on disk is damaged, and was set aside; what could be \
                read is written anew");
        self.is_new = true;
        self.index = Index::default();
        self.removed.clear();
        self.memory.record_all();
        // If this fails, it is tried again.
        match Disk::open(&self.directory) {
            Ok(disk) => self.disk = Some(disk),
            Err(problem) => warn!(%problem, "the history cannot be written now"),
        }
        Ok(())
    }

    fn succeeded(&self) {
        let disk_bytes = self.disk.as_ref().map_or(0, Disk::bytes);
        let (status, whole) = &mut *self.shared.status.lock();
        status.disk_bytes = disk_bytes;
        status.problem = None;
        *whole = Instant::now();
    }

    fn failed(&mut self, problem: &DiskError, is_first: bool, retry_time: Duration) {
        {
            let (status, _) = &mut *self.shared.status.lock();
            status.failures += 1;
            status.problem = Some(problem.to_string());
        }
        if is_first {
            let ms = retry_time.as_millis() as u64;
            let directory = self.directory.display();
            error!(%problem, %directory, retry_ms = ms, "the history is not written: a crash now would \
                    lose what is not on disk");
        }
        if let Some(disk) = self.disk.take() {
            disk.close();
        }
    }

    /// Notes that everything is written. Nothing is retained any more.
    fn close(&mut self) -> Result<(), NotClean> {
        let Some(disk) = self.disk.take() else {
            return Err(NotClean::Failed("the disk failed".to_owned()));
        };
        disk.sync().map_err(|problem| NotClean::Failed(problem.to_string()))?;
        disk.close();
        let epochs_below = self.memory.last_epoch().saturating_add(1);
        let clean = Some(self.index.digest());
        let state = State { epochs_below, clean };
        state.write(&self.directory).map_err(|problem| NotClean::Failed(problem.to_string()))
    }
}

/// Makes the changes of a batch if they have this many bytes.
fn write_if(
    disk: &Disk,
    batch: &mut Batch,
    bytes_min: usize,
    shared: &Shared,
) -> Result<(), DiskError> {
    if batch.bytes < bytes_min {
        return Ok(());
    }
    let whole = std::mem::replace(batch, disk.batch());
    shared.status.lock().0.written_bytes += whole.bytes as u64;
    disk.commit(whole)
}
