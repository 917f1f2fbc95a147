//! One test program, a module per kind of state, judged by itself and from outside.
//!
//! `cargo test --test kinds sleep` runs the tests of all kinds with that in their name.

#[allow(
    dead_code,
    unused_imports,
    reason = "each test target uses a part of the harness"
)]
mod harness;

use harness::{Config, Container, Ground, Rootfs, run, subject};
use std::process::Command;

/// Starts the test program with `kind`, and waits until it is ready and finds itself intact.
fn start(ground: &Ground, kind: &str, rootfs: Rootfs) -> Container {
    let mut config = Config::new(["/bin/subject", kind]);
    config.lo = true;
    adapt(&mut config, kind);
    let mut container = Container::start(ground, rootfs, &config);
    container.stdout().wait_for_line("ready");
    container.assert_intact();
    container
}

/// What some kinds need beside the usual.
fn adapt(config: &mut Config, kind: &str) {
    let capabilities: &[&str] = match kind {
        "space_mounts" | "space_names" => &["CAP_SYS_ADMIN"],
        "space_network" => &["CAP_NET_ADMIN"],
        "space_shm" => &["CAP_IPC_OWNER"],
        _ => &[],
    };
    config.capabilities = capabilities.iter().map(|&name| name.to_owned()).collect();
}

/// Without any checkpoint: the test program is right and the outside judge sees nothing change.
fn stays_as_it_is(kind: &str) {
    let ground = Ground::new();
    let mut container = start(&ground, kind, Rootfs::Small);
    let before = container.snapshot();
    before.assert_same(&container.snapshot());
    container.assert_intact();
}

fn comes_back(kind: &str) {
    let ground = Ground::new();
    let mut container = start(&ground, kind, Rootfs::Small);
    let before = container.snapshot();
    let image = container.checkpoint(&[]);
    container.wait_until_gone();
    let mut restored = image.restore(&ground);
    before.assert_same(&restored.snapshot());
    restored.assert_intact();
}

fn goes_on_and_comes_back(kind: &str) {
    let ground = Ground::new();
    let mut container = start(&ground, kind, Rootfs::Plain);
    let before = container.snapshot();
    let image = container.checkpoint(&["--leave-running"]);
    before.assert_same(&container.snapshot());
    container.assert_intact();
    let mut restored = image.restore(&ground);
    before.assert_same(&restored.snapshot());
    restored.assert_intact();
    container.assert_intact();
}

fn comes_back_twice(kind: &str) {
    let ground = Ground::new();
    let mut container = start(&ground, kind, Rootfs::Small);
    let image = container.checkpoint(&[]);
    container.wait_until_gone();
    let mut once = image.restore(&ground);
    // What some kinds check changes them: new threads, a stack that grew.
    once.assert_intact();
    let before = once.snapshot();
    let image = once.checkpoint(&[]);
    once.wait_until_gone();
    let mut twice = image.restore(&ground);
    before.assert_same(&twice.snapshot());
    twice.assert_intact();
}

macro_rules! kinds {
    ($($kind:ident)*) => {
        const KINDS: &[&str] = &[$(stringify!($kind)),*];
        $(mod $kind {
            const KIND: &str = stringify!($kind);

            #[test]
            fn stays_as_it_is() {
                super::stays_as_it_is(KIND);
            }

            #[test]
            fn comes_back() {
                super::comes_back(KIND);
            }

            #[test]
            fn goes_on_and_comes_back() {
                super::goes_on_and_comes_back(KIND);
            }

            #[test]
            fn comes_back_twice() {
                super::comes_back_twice(KIND);
            }
        })*
    };
}

kinds! {
    idle
    mixed
    sleep_relative
    sleep_absolute
    sleep_poll
    sleep_select
    sleep_futex
    sleep_short
    sleep_endless
    memory_private
    memory_shared
    memory_protections
    memory_code
    memory_grows_down
    memory_stacks
    memory_locked
    memory_advice
    memory_named
    memory_brk
    memory_after_fork
    memory_huge_sparse
    memory_many_areas
    mapping_private
    mapping_shared
    mapping_deleted
    mapping_memfd
    mapping_beyond_end
    signal_handlers
    signal_masks
    signal_pending
    signal_pending_thread
    signal_altstack
    signal_in_handler
    timer_interval
    timer_posix
    tree_children
    tree_orphans
    tree_zombies
    tree_sessions
    tree_stopped
    tree_death_signals
    thread_locals
    thread_rseq
    thread_robust_list
    thread_join
    thread_thousand
    rights_ids
    rights_ids_of_threads
    rights_capabilities
    rights_securebits
    rights_seccomp
    rights_limits
    rights_scheduling
    rights_flags
    fd_files
    fd_shared
    fd_directories
    fd_deleted
    fd_devices
    fd_pipes
    fd_pipe_packets
    fd_fifos
    fd_locks
    fd_numbers
    event_eventfd
    event_epoll
    event_timerfd
    event_signalfd
    event_inotify
    event_terminal
    event_terminal_session
    socket_pairs
    socket_unix_named
    socket_unix_waiting
    socket_in_flight
    socket_options
    socket_tcp
    socket_tcp_waiting
    socket_tcp_half_closed
    socket_tcp_six
    socket_udp
    processor_vectors
    processor_controls
    processor_bases
    processor_busy
    space_tmpfs
    space_mounts
    space_rootfs
    space_names
    space_shm
    space_semaphores
    space_messages
    space_network
}

#[test]
fn every_kind_of_the_test_program_is_tested() {
    let listed = run(Command::new(subject()).arg("list"));
    let listed: Vec<&str> = listed
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(listed, KINDS);
}
