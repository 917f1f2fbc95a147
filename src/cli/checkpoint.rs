//! `ocimig checkpoint`.

use super::watch::Watch;
use crate::error::{Error, Exit, Result};
use crate::image::header::Compression;
use crate::oci::runtime;
use crate::request::{
    After, Checkpoint, CheckpointOptions, Description, External, Output, Rootfs, Target, Tcp,
};
use std::os::fd::AsFd;
use std::path::PathBuf;

/// The arguments of `ocimig checkpoint`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The container's id, as runc or crun know it
    #[arg(required_unless_present = "pid")]
    container: Option<String>,
    /// The first process of a PID namespace, instead of a container's id
    #[arg(long, conflicts_with = "container")]
    pid: Option<i32>,
    /// The runtime's state directory [default: /run/runc, /run/crun]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// The image to write; `-` is standard output
    #[arg(
        long,
        short,
        value_name = "IMAGE.tar",
        required_unless_present = "dry_run"
    )]
    output: Option<PathBuf>,
    /// Let the container go on afterwards
    #[arg(long)]
    leave_running: bool,
    /// How the image is compressed: zstd, lz4, gzip, none
    #[arg(long, value_name = "HOW", default_value = "zstd")]
    compress: Compression,
    /// What of the root file system is taken: auto, diff, full, none
    #[arg(long, value_name = "WHAT", default_value = "auto", value_parser = rootfs)]
    rootfs: Rootfs,
    /// Keep TCP connections that lead outside
    #[arg(long, conflicts_with = "tcp_close")]
    tcp_established: bool,
    /// Drop TCP connections that lead outside
    #[arg(long)]
    tcp_close: bool,
    /// Allow datagram sockets that are connected to a named Unix socket outside
    #[arg(long)]
    ext_unix_sk: bool,
    /// Something outside that the restoring side gives: `mnt[/data]:data`, `file[…]`, `tty[…]`
    #[arg(long, value_name = "WHAT")]
    external: Vec<External>,
    /// Report what a checkpoint would refuse; write nothing, change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    watch: super::watch::WatchArguments,
}

fn rootfs(text: &str) -> Result<Rootfs, String> {
    match text {
        "auto" => Ok(Rootfs::Auto),
        "diff" => Ok(Rootfs::Diff),
        "full" => Ok(Rootfs::Full),
        "none" => Ok(Rootfs::None),
        _ => Err(format!("{text:?} is none of auto, diff, full, none")),
    }
}

/// Runs `ocimig checkpoint`.
pub fn run(arguments: Arguments) -> Result<()> {
    let mut description = Description::default();
    let mut freeze_cgroup = None;
    let init = match (&arguments.container, arguments.pid) {
        (_, Some(pid)) => pid,
        (Some(id), None) => {
            let found = runtime::find(id, arguments.root.as_deref())?;
            description = Description {
                id: Some(found.id),
                name: None,
                runtime: Some(found.runtime),
                bundle: Some(found.bundle),
                root: None,
            };
            freeze_cgroup = found
                .cgroups
                .into_iter()
                .find(|path| path.components().any(|part| part.as_os_str() == "freezer"));
            found.host_pid
        }
        (None, None) => return Err(Error::bug("neither a container nor a process")),
    };
    let output = match arguments.output {
        Some(path) if path.as_os_str() == "-" => {
            Output::Stream(std::io::stdout().as_fd().try_clone_to_owned()?)
        }
        Some(path) => Output::File(path),
        None if arguments.dry_run => Output::File("/dev/null".into()),
        None => {
            return Err(Error::coded(
                "E-REQUEST",
                Exit::Usage,
                "no image is named",
                "give --output",
            ));
        }
    };
    let request = Checkpoint::new(
        Target::Pid(init),
        output,
        CheckpointOptions {
            after: if arguments.leave_running {
                After::Run
            } else {
                After::Kill
            },
            compression: arguments.compress,
            rootfs: arguments.rootfs,
            tcp: match (arguments.tcp_established, arguments.tcp_close) {
                (true, _) => Tcp::Keep,
                (false, true) => Tcp::Drop,
                (false, false) => Tcp::Refuse,
            },
            external_unix: arguments.ext_unix_sk,
            external: arguments.external,
            freeze_cgroup,
            dry_run: arguments.dry_run,
            description,
            ..CheckpointOptions::default()
        },
    )?;
    let mut watch = Watch::new(&arguments.watch);
    let report = crate::checkpoint::run(&request, &mut watch)?;
    watch.checkpoint_done(&report);
    Ok(())
}
