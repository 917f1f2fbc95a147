//! TCP connections that lead outside the namespace: refused, dropped, or kept by TCP_REPAIR.

use super::Collector;
use super::tcp::Found;
use crate::error::Result;
use crate::image::sockets::TcpState;

/// Returns whether the record is to be kept.
pub(super) fn collect(one: &mut Found, collector: &mut Collector<'_>) -> Result<bool> {
    if collector.choices.tcp_close {
        one.record.state = TcpState::Over { reset: false };
        one.record.local = None;
        return Ok(true);
    }
    let ends = one.ends.map_or_else(String::new, |(local, remote)| {
        format!("from {local} to {remote}, ")
    });
    collector.refusals.add(
        "E-TCP-OUTSIDE",
        one.who.as_str(),
        format!("the connection {ends}leads outside the container"),
        "close it, keep it with --tcp-established, or drop it with --tcp-close",
    );
    Ok(false)
}
