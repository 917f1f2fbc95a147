//! System V message queues.

use super::{id, identity, list, permissions, with_number};
use crate::error::{Context, Refusals, Result};
use crate::image::bytes::Bytes;
use crate::image::namespaces::ipc::{Message, MessageQueue};
use crate::sys::sysv;
use nix::errno::Errno;

pub(super) fn capture(refusals: &mut Refusals) -> Result<Vec<MessageQueue>> {
    let rows = list("msg")?;
    rows.iter()
        .map(|row| {
            let id = id(row, "msqid")?;
            read(id, refusals).doing(|| format!("reading System V message queue {id}"))
        })
        .collect()
}

fn read(id: i32, refusals: &mut Refusals) -> Result<MessageQueue> {
    let state = sysv::queue(id)?;
    let most = usize::try_from(state.bytes).unwrap_or(usize::MAX);
    let mut messages = Vec::new();
    loop {
        match sysv::peek(id, messages.len() as u64, most) {
            Ok(Some((kind, text))) => {
                let text = Bytes(text);
                messages.push(Message { kind, text });
            }
            Ok(None) => break,
            // The kernel copies no message that is longer than what may be sent now.
            Err(error) if error.errno() == Some(Errno::EINVAL) => {
                refusals.add(
                    "E-MSG-LENGTH",
                    format!("System V message queue {id}"),
                    "it holds a message that is longer than kernel.msgmax is now",
                    "raise kernel.msgmax in the container again",
                );
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(MessageQueue {
        identity: identity(id, &state.permissions),
        limit: state.limit,
        messages,
    })
}

pub(super) fn rebuild(queues: &[MessageQueue]) -> Result<()> {
    for queue in queues {
        let id = queue.identity.id;
        make(queue).doing(|| format!("making System V message queue {id}"))?;
    }
    Ok(())
}

/// A new queue has the highest limit that can be; lowering it needs no rights.
fn make(queue: &MessageQueue) -> Result<()> {
    let id = queue.identity.id;
    with_number("msg", &queue.identity, sysv::new_queue)?;
    for message in &queue.messages {
        sysv::send(id, message.kind, &message.text.0)?;
    }
    sysv::set_queue(id, &permissions(&queue.identity), queue.limit)
}
