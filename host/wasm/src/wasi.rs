//! WASI without authority, for synchronous calls on the server's own threads.
//!
//! `wasmtime-wasi` implements synchronous streams and polls by blocking on a tokio runtime, which
//! panics on a worker thread. On the data path no stream of a component ever has to wait, so each
//! future is polled once instead. A future that is not ready (a sleep, say) is a trap: a component
//! must not wait there. A call with an HTTP permit waits on its own blocking thread.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksView};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::io::{poll as async_poll, streams as async_streams};
use wasmtime_wasi::p2::bindings::sync::filesystem::types as files;
use wasmtime_wasi::p2::bindings::sync::io::{poll, streams};
use wasmtime_wasi::p2::bindings::sync::sockets::{tcp, udp, udp_create_socket};
use wasmtime_wasi::p2::bindings::{cli, clocks, filesystem, io, random, sockets};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable, StreamError, StreamResult};
use wasmtime_wasi::random::WasiRandom;
use wasmtime_wasi::sockets::{WasiSockets, WasiSocketsView};

use super::StoreState;
use super::outside::HttpPermit;

/// Links the interfaces of `WASI_GRANTED` and `WASI_EMPTY`.
pub fn add_to_linker(linker: &mut Linker<StoreState>) -> Result<(), wasmtime::Error> {
    type S = StoreState;
    let inline: fn(&mut S) -> Inline<'_> =
        |state| Inline { table: &mut state.table, leave: state.outside.leave() };
    io::error::add_to_linker::<S, HasErrors>(linker, |state| &mut state.table)?;
    poll::add_to_linker::<S, HasInline>(linker, inline)?;
    streams::add_to_linker::<S, HasInline>(linker, inline)?;
    clocks::wall_clock::add_to_linker::<S, WasiClocks>(linker, S::clocks)?;
    clocks::monotonic_clock::add_to_linker::<S, WasiClocks>(linker, S::clocks)?;
    random::random::add_to_linker::<S, WasiRandom>(linker, |state| state.ctx().ctx.random())?;
    random::insecure::add_to_linker::<S, WasiRandom>(linker, |state| state.ctx().ctx.random())?;
    random::insecure_seed::add_to_linker::<S, WasiRandom>(linker, |state| {
        state.ctx().ctx.random()
    })?;
    cli::exit::add_to_linker::<S, WasiCli>(linker, S::cli)?;
    cli::environment::add_to_linker::<S, WasiCli>(linker, S::cli)?;
    cli::stdin::add_to_linker::<S, WasiCli>(linker, S::cli)?;
    cli::stdout::add_to_linker::<S, WasiCli>(linker, S::cli)?;
    cli::stderr::add_to_linker::<S, WasiCli>(linker, S::cli)?;
    cli::terminal_input::add_to_linker::<S, WasiCli>(linker, S::cli)?;
    cli::terminal_output::add_to_linker::<S, WasiCli>(linker, S::cli)?;
    cli::terminal_stdin::add_to_linker::<S, WasiCli>(linker, S::cli)?;
    cli::terminal_stdout::add_to_linker::<S, WasiCli>(linker, S::cli)?;
    cli::terminal_stderr::add_to_linker::<S, WasiCli>(linker, S::cli)?;
    add_empty(linker)
}

/// Links the interfaces of `WASI_EMPTY`. No call can block: there is nothing to open.
fn add_empty(linker: &mut Linker<StoreState>) -> Result<(), wasmtime::Error> {
    type S = StoreState;
    filesystem::preopens::add_to_linker::<S, WasiFilesystem>(linker, S::filesystem)?;
    files::add_to_linker::<S, WasiFilesystem>(linker, S::filesystem)?;
    tcp::add_to_linker::<S, WasiSockets>(linker, S::sockets)?;
    udp::add_to_linker::<S, WasiSockets>(linker, S::sockets)?;
    udp_create_socket::add_to_linker::<S, WasiSockets>(linker, S::sockets)?;
    sockets::tcp_create_socket::add_to_linker::<S, WasiSockets>(linker, S::sockets)?;
    sockets::instance_network::add_to_linker::<S, WasiSockets>(linker, S::sockets)?;
    sockets::ip_name_lookup::add_to_linker::<S, WasiSockets>(linker, S::sockets)?;
    let options = sockets::network::LinkOptions::default();
    sockets::network::add_to_linker::<S, WasiSockets>(linker, &options, S::sockets)
}

struct HasErrors;

impl HasData for HasErrors {
    type Data<'a> = &'a mut ResourceTable;
}

struct HasInline;

impl HasData for HasInline {
    type Data<'a> = Inline<'a>;
}

/// The resources of a store. Their futures are polled once, or waited for if there is an HTTP
/// permit.
struct Inline<'a> {
    table: &'a mut ResourceTable,
    leave: Option<&'a HttpPermit>,
}

/// The result of a future that is ready, or that may be waited for; otherwise a trap.
fn now<F: Future>(leave: Option<&HttpPermit>, future: F) -> Result<F::Output, wasmtime::Error> {
    let mut future = pin!(future);
    match (future.as_mut().poll(&mut Context::from_waker(Waker::noop())), leave) {
        (Poll::Ready(output), _) => Ok(output),
        (Poll::Pending, Some(leave)) => leave.wait(future),
        (Poll::Pending, None) => {
            Err(wasmtime::format_err!("it tried to wait, which no plugin may"))
        }
    }
}

fn stream_now<T>(
    leave: Option<&HttpPermit>,
    future: impl Future<Output = StreamResult<T>>,
) -> StreamResult<T> {
    now(leave, future).map_err(StreamError::Trap)?
}

impl poll::Host for Inline<'_> {
    fn poll(&mut self, pollables: Vec<Resource<DynPollable>>) -> wasmtime::Result<Vec<u32>> {
        now(self.leave, async_poll::Host::poll(self.table, pollables))?
    }
}

impl poll::HostPollable for Inline<'_> {
    fn ready(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<bool> {
        now(self.leave, async_poll::HostPollable::ready(self.table, pollable))?
    }

    fn block(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        now(self.leave, async_poll::HostPollable::block(self.table, pollable))?
    }

    fn drop(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        async_poll::HostPollable::drop(self.table, pollable)
    }
}

impl streams::Host for Inline<'_> {
    fn convert_stream_error(
        &mut self,
        error: StreamError,
    ) -> wasmtime::Result<streams::StreamError> {
        Ok(async_streams::Host::convert_stream_error(self.table, error)?.into())
    }
}

impl streams::HostOutputStream for Inline<'_> {
    fn drop(&mut self, stream: Resource<DynOutputStream>) -> wasmtime::Result<()> {
        now(self.leave, async_streams::HostOutputStream::drop(self.table, stream))?
    }

    fn check_write(&mut self, stream: Resource<DynOutputStream>) -> StreamResult<u64> {
        async_streams::HostOutputStream::check_write(self.table, stream)
    }

    fn write(&mut self, stream: Resource<DynOutputStream>, bytes: Vec<u8>) -> StreamResult<()> {
        async_streams::HostOutputStream::write(self.table, stream, bytes)
    }

    fn blocking_write_and_flush(
        &mut self,
        stream: Resource<DynOutputStream>,
        bytes: Vec<u8>,
    ) -> StreamResult<()> {
        stream_now(
            self.leave,
            async_streams::HostOutputStream::blocking_write_and_flush(self.table, stream, bytes),
        )
    }

    fn blocking_write_zeroes_and_flush(
        &mut self,
        stream: Resource<DynOutputStream>,
        len: u64,
    ) -> StreamResult<()> {
        stream_now(
            self.leave,
            async_streams::HostOutputStream::blocking_write_zeroes_and_flush(
                self.table, stream, len,
            ),
        )
    }

    fn subscribe(
        &mut self,
        stream: Resource<DynOutputStream>,
    ) -> wasmtime::Result<Resource<DynPollable>> {
        async_streams::HostOutputStream::subscribe(self.table, stream)
    }

    fn write_zeroes(&mut self, stream: Resource<DynOutputStream>, len: u64) -> StreamResult<()> {
        async_streams::HostOutputStream::write_zeroes(self.table, stream, len)
    }

    fn flush(&mut self, stream: Resource<DynOutputStream>) -> StreamResult<()> {
        async_streams::HostOutputStream::flush(self.table, stream)
    }

    fn blocking_flush(&mut self, stream: Resource<DynOutputStream>) -> StreamResult<()> {
        stream_now(self.leave, async_streams::HostOutputStream::blocking_flush(self.table, stream))
    }

    fn splice(
        &mut self,
        into: Resource<DynOutputStream>,
        from: Resource<DynInputStream>,
        len: u64,
    ) -> StreamResult<u64> {
        async_streams::HostOutputStream::splice(self.table, into, from, len)
    }

    fn blocking_splice(
        &mut self,
        into: Resource<DynOutputStream>,
        from: Resource<DynInputStream>,
        len: u64,
    ) -> StreamResult<u64> {
        stream_now(
            self.leave,
            async_streams::HostOutputStream::blocking_splice(self.table, into, from, len),
        )
    }
}

impl streams::HostInputStream for Inline<'_> {
    fn drop(&mut self, stream: Resource<DynInputStream>) -> wasmtime::Result<()> {
        now(self.leave, async_streams::HostInputStream::drop(self.table, stream))?
    }

    fn read(&mut self, stream: Resource<DynInputStream>, len: u64) -> StreamResult<Vec<u8>> {
        async_streams::HostInputStream::read(self.table, stream, len)
    }

    fn blocking_read(
        &mut self,
        stream: Resource<DynInputStream>,
        len: u64,
    ) -> StreamResult<Vec<u8>> {
        stream_now(
            self.leave,
            async_streams::HostInputStream::blocking_read(self.table, stream, len),
        )
    }

    fn skip(&mut self, stream: Resource<DynInputStream>, len: u64) -> StreamResult<u64> {
        async_streams::HostInputStream::skip(self.table, stream, len)
    }

    fn blocking_skip(&mut self, stream: Resource<DynInputStream>, len: u64) -> StreamResult<u64> {
        stream_now(
            self.leave,
            async_streams::HostInputStream::blocking_skip(self.table, stream, len),
        )
    }

    fn subscribe(
        &mut self,
        stream: Resource<DynInputStream>,
    ) -> wasmtime::Result<Resource<DynPollable>> {
        async_streams::HostInputStream::subscribe(self.table, stream)
    }
}
