//! The tasks of an export: one that keeps it as long as it is wanted, and one for each line, which connects and serves
//! again and again.

mod address;
mod attempts;
mod expiry;
mod silence;

use crate::export::Export;
use crate::exports::Exports;
use crate::fault::Fault;
use crate::handshake::{HandshakeError, Session, negotiate};
use crate::wire::{Command, CommandKind};
use address::ServerAddress;
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use attempts::Attempts;
use bulkhead_executor::Handle;
use bulkhead_stream::{AddressChoice, Buffers, ConnectError, Stream};
use bulkhead_xen::Hypervisor;
use core::fmt;
use core::future::{Future, poll_fn};
use core::net::IpAddr;
use core::pin::{Pin, pin};
use core::task::Poll;
use core::time::Duration;
use expiry::Expiry;
use futures_util::future::{Either, join_all, join3, select};
use silence::Silence;

/// The time for a connection, and for the whole handshake on it.
const CONNECTS: Duration = Duration::from_secs(10);
const NEGOTIATES: Duration = Duration::from_secs(10);

/// The time for which an export that no disk uses is kept.
const KEPT: Duration = Duration::from_secs(60);

/// The size of a connection's buffers: room for the bytes that are on their way in a fast network, and for a few of the
/// largest requests.
const BUFFERS: Buffers = Buffers {
    receive: 256 << 10,
    send: 256 << 10,
};

/// The reason why a connection is not served any more.
enum End {
    /// The export is let go of.
    Leaves,
    /// The export was given up.
    GivenUp,
    /// The connection is over, or cannot be used any more.
    Fault(Fault),
    /// The server does not answer.
    Silent(Duration),
    /// The first line has gone to another address of the server.
    Moved,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Leaves => f.write_str("it is not needed any more"),
            End::GivenUp => f.write_str("it was given up"),
            End::Fault(Fault::Violation(violation)) => violation.fmt(f),
            End::Fault(Fault::ShuttingDown) => f.write_str("the server is shutting down"),
            End::Fault(Fault::Ended(ended)) => ended.fmt(f),
            End::Moved => f.write_str("another address of the server is used from now on"),
            End::Silent(span) => {
                write!(
                    f,
                    "the server has not answered for {} seconds",
                    span.as_secs()
                )
            }
        }
    }
}

/// Keeps an export connected until it is let go of.
pub async fn live<H: Hypervisor>(exports: &Rc<Exports<H>>, export: &Arc<Export>) {
    let keeper = keep(exports, export);
    let address = ServerAddress::default();
    let first = serve_line(exports, export, 0, &address);
    let others = async {
        // The first one says whether the others may be.
        exports
            .until(|| (export.properties().is_some() || is_over(export)).then_some(()))
            .await;
        let lines = (1..export.lines()).map(|line| serve_line(exports, export, line, &address));
        join_all(lines).await;
    };
    join3(keeper, first, others).await;
    export.set_left();
}

fn is_over(export: &Export) -> bool {
    export.failure().is_some() || export.is_leaving()
}

/// Lets go of an export that no disk has used or asked for during [`KEPT`], and of one that was given up as soon as no
/// disk uses it.
async fn keep<H: Hypervisor>(exports: &Rc<Exports<H>>, export: &Arc<Export>) {
    while !export.is_leaving() {
        let unused = || (export.users() == 0 || export.is_leaving()).then_some(());
        exports.until(unused).await;
        let wanted = export.wanted();
        let used = exports.until(|| {
            let ends = is_over(export) && export.users() == 0;
            (export.users() > 0 || export.wanted() != wanted || ends).then_some(())
        });
        let kept = pin!(exports.handle().sleep(KEPT));
        match select(pin!(used), kept).await {
            Either::Left(_) if !is_over(export) || export.users() > 0 => {}
            _ => export.leave(),
        }
    }
}

/// Connects, and serves, until the export is let go of or given up.
async fn serve_line<H: Hypervisor>(
    exports: &Rc<Exports<H>>,
    export: &Arc<Export>,
    number: usize,
    address: &ServerAddress,
) {
    let line = export.line(number);
    let mut attempts = Attempts::default();
    while !is_over(export) {
        let connecting = connect(exports, export, number, address);
        match until_over(exports, export, number, &attempts, connecting).await {
            None => break,
            Some(Err(ConnectFailure { reason, passes })) => {
                if !passes && export.properties().is_none() {
                    export.fail(reason);
                    break;
                }
                // Further lines are a help, and not needed.
                if number == 0 || line.connections() > 0 {
                    note_disconnect_reason(export, number, reason);
                }
            }
            Some(Ok((session, reached))) => {
                let Session {
                    stream,
                    properties,
                    structured,
                } = session;
                if let Err(reason) = export.found(properties) {
                    let (scheme, shown) = (export.scheme(), export.shown());
                    log::error!("{scheme}:{shown}: it is given up: {reason}");
                    export.fail(reason);
                    break;
                }
                if number == 0 {
                    address.choose();
                    export.wake_lines();
                    let left = exports.until(|| address.is_left_by_all().then_some(()));
                    if until_over(exports, export, number, &attempts, left)
                        .await
                        .is_none()
                    {
                        break;
                    }
                } else if !address.is_used(reached) {
                    continue;
                }
                let connections = line.count_connection();
                if line.set_disconnect_reason(None) && connections > 1 {
                    tell_of_connection(export);
                }
                let begun = exports.handle().now();
                let before = {
                    let mut table = line.table();
                    attempts.connected(begun, table.waiting() > 0);
                    table.connected(structured);
                    table.counts()
                };
                if number > 0 {
                    address.joined();
                }
                let is_moved = || number > 0 && !address.is_used(reached);
                let served = (stream, &attempts, is_moved);
                let end = serve(exports.handle(), export, number, served).await;
                let now = exports.handle().now();
                let [asked, answered] = {
                    let mut table = line.table();
                    table.disconnected();
                    let after = table.counts();
                    [0, 1].map(|which| after[which] > before[which])
                };
                if number > 0 {
                    address.left(reached);
                    export.changed();
                }
                attempts.served((asked, answered), now.since(begun), &end);
                if let Some(timeout) = exports.settings().timeout {
                    attempts.expire_at.get_or_insert(now + timeout);
                }
                match end {
                    End::Leaves | End::GivenUp => break,
                    End::Fault(Fault::Violation(violation)) => {
                        let (scheme, shown) = (export.scheme(), export.shown());
                        log::error!("{scheme}:{shown}: it is given up: {violation}");
                        export.fail(violation.to_string());
                        break;
                    }
                    end => note_disconnect_reason(export, number, end.to_string()),
                }
            }
        }
        let pause = exports.handle().sleep(attempts.pause());
        let paused = until_over(exports, export, number, &attempts, pause);
        if paused.await.is_none() {
            break;
        }
    }
    line.table().disconnected();
}

/// Logs that there is a connection again: of several, the first one and the last one. The line says nothing of the
/// cause: the server and the way to it look the same.
fn tell_of_connection(export: &Export) {
    let (scheme, shown) = (export.scheme(), export.shown());
    let lost = export.lose_unflushed();
    let (connected, lines) = export.connections();
    let by = match connected < lines {
        true => format!(" by {connected} of its {lines} connections"),
        false => String::new(),
    };
    if lost {
        log::warn!(
            "{scheme}:{shown}: it is connected again{by}; what guests wrote and did not flush may be lost if the server was \
             started anew"
        );
    } else if connected == 1 || connected == lines {
        log::info!("{scheme}:{shown}: it is connected again{by}");
    }
}

/// Notes the reason why a line has no connection, and logs it: once if several lines have the same reason, and when no
/// line is left that has a connection.
fn note_disconnect_reason(export: &Export, number: usize, reason: String) {
    let (scheme, shown) = (export.scheme(), export.shown());
    let (before, _) = export.connections();
    let known = export.disconnect_reasons().any(|other| other == reason);
    if !export
        .line(number)
        .set_disconnect_reason(Some(reason.clone()))
        || export.properties().is_none()
    {
        return;
    }
    match export.connections() {
        (0, _) if before > 0 || !known => {
            log::warn!("{scheme}:{shown}: {reason}; its requests wait");
        }
        (connected @ 1.., lines) if !known => log::warn!(
            "{scheme}:{shown}: {reason}; the requests of {} of its {lines} connections wait",
            lines - connected
        ),
        _ => {}
    }
}

/// The reason why there is no connection.
struct ConnectFailure {
    reason: String,
    /// True if the next attempt may have another outcome.
    passes: bool,
}

/// Connects a line, and returns the address that it is connected to.
async fn connect<H: Hypervisor>(
    exports: &Rc<Exports<H>>,
    export: &Export,
    number: usize,
    address: &ServerAddress,
) -> Result<(Session, Option<IpAddr>), ConnectFailure> {
    let (handle, name) = (exports.handle(), &export.name);
    let server = &name.server;
    let passing = |reason| ConnectFailure {
        reason,
        passes: true,
    };
    let own = AddressChoice::default();
    let (reached, choice) = match number {
        0 => (server.clone(), &address.choice),
        _ => (address.server(server), &own),
    };
    let connecting = exports.network().connect(&reached, choice, BUFFERS);
    let stream = match within(handle, CONNECTS, connecting).await {
        Some(Ok(stream)) => stream,
        Some(Err(error)) => {
            return Err(ConnectFailure {
                reason: format!("the server {server}: {error}"),
                // Nobody who has just started knows the name better a little later.
                passes: !matches!(error, ConnectError::NoAddress | ConnectError::NoNameServer),
            });
        }
        None => return Err(passing(format!("the server {server} does not answer"))),
    };
    let tls = exports.tls().map(|tls| (tls, server.host.as_str()));
    let session = within(handle, NEGOTIATES, negotiate(stream, &name.export, tls)).await;
    let session = session.unwrap_or(Err(HandshakeError::Late));
    match session {
        Ok(session) => Ok((session, choice.last())),
        Err(error) => Err(ConnectFailure {
            passes: error.may_pass(),
            reason: error.to_string(),
        }),
    }
}

async fn within<H: Hypervisor, T>(
    handle: &Handle<H>,
    span: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    match select(pin!(future), pin!(handle.sleep(span))).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(_) => None,
    }
}

/// Waits for `future`, unless the export is let go of or given up meanwhile. The requests of the line, which has no
/// connection, fail when their time is over.
async fn until_over<H: Hypervisor, T>(
    exports: &Exports<H>,
    export: &Export,
    line: usize,
    attempts: &Attempts,
    future: impl Future<Output = T>,
) -> Option<T> {
    let line = export.line(line);
    let expire_at = attempts.expire_at;
    let mut expiry = expire_at.map(|time| exports.handle().sleep_until(time));
    let mut future = pin!(future);
    poll_fn(|context| {
        line.wake_with(context.waker());
        if is_over(export) {
            return Poll::Ready(None);
        }
        if let Some(sleep) = &mut expiry
            && Pin::new(sleep).poll(context).is_ready()
        {
            expiry = None;
            line.table().expire();
        }
        future.as_mut().poll(context).map(Some)
    })
    .await
}

/// Sends requests and receives replies until the connection or the export ends, or `is_moved` says that another address
/// of the server is used.
async fn serve<H: Hypervisor>(
    handle: &Handle<H>,
    export: &Export,
    number: usize,
    (mut stream, attempts, is_moved): (Box<dyn Stream>, &Attempts, impl Fn() -> bool),
) -> End {
    let line = export.line(number);
    let mut silence = Silence::new(handle, attempts.silent);
    let mut expiry = Expiry::new(handle, attempts.expire_at);
    let [_, before, _] = line.table().counts();
    let end = poll_fn(|context| {
        line.wake_with(context.waker());
        stream.wake_with(context.waker());
        if export.failure().is_some() {
            return Poll::Ready(End::GivenUp);
        }
        if is_moved() {
            return Poll::Ready(End::Moved);
        }
        let mut table = line.table();
        match table.work(&mut *stream) {
            Ok(false) => {}
            // Other tasks have their turn first.
            Ok(true) => context.waker().wake_by_ref(),
            Err(fault) => return Poll::Ready(End::Fault(fault)),
        }
        let (waits, progress, unsent) = (table.is_waiting(), table.progress(), table.waiting());
        let [_, answers, _] = table.counts();
        drop(table);
        if export.is_leaving() && unsent == 0 && !waits {
            return Poll::Ready(End::Leaves);
        }
        let waits = waits || unsent > 0;
        if let Poll::Ready(span) = expiry.poll(context, waits, answers != before) {
            return Poll::Ready(End::Silent(span));
        }
        silence.poll(context, waits, progress).map(End::Silent)
    })
    .await;
    if matches!(end, End::Leaves) {
        disconnect(&mut *stream);
    }
    end
}

/// Tells a server that nothing more comes, which it does not answer.
fn disconnect(stream: &mut dyn Stream) {
    let command = Command {
        kind: CommandKind::Disconnect,
        cookie: 0,
        offset: 0,
        len: 0,
        fua: false,
    };
    let bytes = command.to_bytes();
    let mut sent = 0;
    while sent < bytes.len() {
        let mut some = |room: &mut [u8]| {
            let part = room.len().min(bytes.len() - sent);
            room[..part].copy_from_slice(&bytes[sent..sent + part]);
            part
        };
        match stream.send(&mut some) {
            Ok(0) | Err(_) => break,
            Ok(part) => sent += part,
        }
    }
    stream.push();
    stream.close();
}
