//! The messages of the RPC, by their public field numbers.
//!
//! Everything is optional that may be left out: what then holds is a matter of `super::settings`, not of
//! decoding. Fields that are not here are passed over, as protobuf wants it.

use prost::{Enumeration, Message};

/// What a request asks for, and what an answer answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Enumeration)]
#[repr(i32)]
pub enum Kind {
    /// Answer to what could not be understood.
    Empty = 0,
    /// Checkpoint.
    Dump = 1,
    /// Restore.
    Restore = 2,
    /// Is this host able to?
    Check = 3,
    /// Checkpoint of the memory only; the connection stays open for the next request.
    PreDump = 4,
    /// Serve pages, in a child.
    PageServer = 5,
    /// A stage is reached, and its acknowledgement.
    Notify = 6,
    /// Write down what this processor can do.
    CpuinfoDump = 7,
    /// Compare this processor with what was written down.
    CpuinfoCheck = 8,
    /// Ask for features.
    FeatureCheck = 9,
    /// Ask for the version.
    Version = 10,
    /// Wait for a child of the service.
    WaitPid = 11,
    /// Serve pages, in a child of the service that can be waited for.
    PageServerChild = 12,
    /// Checkpoint of the memory only.
    SinglePreDump = 13,
}

/// Modes of cgroup management.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Enumeration)]
#[repr(i32)]
#[expect(missing_docs, reason = "named and described by request::CgroupMode")]
pub enum CgroupMode {
    Ignore = 0,
    None = 1,
    Props = 2,
    Soft = 3,
    Full = 4,
    Strict = 5,
    Default = 6,
}

/// How the network is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Enumeration)]
#[repr(i32)]
#[expect(missing_docs, reason = "their names say it")]
pub enum NetworkLock {
    Iptables = 1,
    Nftables = 2,
    Skip = 3,
}

/// A page server.
#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "field names of the protocol")]
pub struct PageServer {
    #[prost(string, optional, tag = "1")]
    pub address: Option<String>,
    #[prost(int32, optional, tag = "2")]
    pub port: Option<i32>,
    #[prost(int32, optional, tag = "3")]
    pub pid: Option<i32>,
    #[prost(int32, optional, tag = "4")]
    pub fd: Option<i32>,
}

/// A pair of network interfaces.
#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "field names of the protocol")]
pub struct VethPair {
    #[prost(string, required, tag = "1")]
    pub if_in: String,
    #[prost(string, required, tag = "2")]
    pub if_out: String,
}

/// An external mount.
#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "field names of the protocol")]
pub struct ExtMount {
    #[prost(string, required, tag = "1")]
    pub key: String,
    #[prost(string, required, tag = "2")]
    pub val: String,
}

/// A namespace to go into.
#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "field names of the protocol")]
pub struct JoinNs {
    #[prost(string, required, tag = "1")]
    pub ns: String,
    #[prost(string, required, tag = "2")]
    pub ns_file: String,
    #[prost(string, optional, tag = "3")]
    pub extra_opt: Option<String>,
}

/// A descriptor that stands for something of the image.
#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "field names of the protocol")]
pub struct InheritFd {
    #[prost(string, required, tag = "1")]
    pub key: String,
    #[prost(int32, required, tag = "2")]
    pub fd: i32,
}

/// A new place for cgroups.
#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "field names of the protocol")]
pub struct CgroupRoot {
    #[prost(string, optional, tag = "1")]
    pub ctrl: Option<String>,
    #[prost(string, required, tag = "2")]
    pub path: String,
}

/// A Unix socket whose peer is outside.
#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "field names of the protocol")]
pub struct UnixSocket {
    #[prost(uint32, required, tag = "1")]
    pub inode: u32,
}

/// All options of a checkpoint or restore.
#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "field names of the protocol")]
pub struct Options {
    #[prost(int32, optional, tag = "1")]
    pub images_dir_fd: Option<i32>,
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
    #[prost(bool, optional, tag = "3")]
    pub leave_running: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub ext_unix_sk: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    pub tcp_established: Option<bool>,
    #[prost(bool, optional, tag = "6")]
    pub evasive_devices: Option<bool>,
    #[prost(bool, optional, tag = "7")]
    pub shell_job: Option<bool>,
    #[prost(bool, optional, tag = "8")]
    pub file_locks: Option<bool>,
    #[prost(int32, optional, tag = "9")]
    pub log_level: Option<i32>,
    #[prost(string, optional, tag = "10")]
    pub log_file: Option<String>,
    #[prost(message, optional, tag = "11")]
    pub ps: Option<PageServer>,
    #[prost(bool, optional, tag = "12")]
    pub notify_scripts: Option<bool>,
    #[prost(string, optional, tag = "13")]
    pub root: Option<String>,
    #[prost(string, optional, tag = "14")]
    pub parent_img: Option<String>,
    #[prost(bool, optional, tag = "15")]
    pub track_mem: Option<bool>,
    #[prost(bool, optional, tag = "16")]
    pub auto_dedup: Option<bool>,
    #[prost(int32, optional, tag = "17")]
    pub work_dir_fd: Option<i32>,
    #[prost(bool, optional, tag = "18")]
    pub link_remap: Option<bool>,
    #[prost(message, repeated, tag = "19")]
    pub veths: Vec<VethPair>,
    #[prost(uint32, optional, tag = "20")]
    pub cpu_cap: Option<u32>,
    #[prost(bool, optional, tag = "21")]
    pub force_irmap: Option<bool>,
    #[prost(string, repeated, tag = "22")]
    pub exec_cmd: Vec<String>,
    #[prost(message, repeated, tag = "23")]
    pub ext_mnt: Vec<ExtMount>,
    #[prost(bool, optional, tag = "24")]
    pub manage_cgroups: Option<bool>,
    #[prost(message, repeated, tag = "25")]
    pub cg_root: Vec<CgroupRoot>,
    #[prost(bool, optional, tag = "26")]
    pub rst_sibling: Option<bool>,
    #[prost(message, repeated, tag = "27")]
    pub inherit_fd: Vec<InheritFd>,
    #[prost(bool, optional, tag = "28")]
    pub auto_ext_mnt: Option<bool>,
    #[prost(bool, optional, tag = "29")]
    pub ext_sharing: Option<bool>,
    #[prost(bool, optional, tag = "30")]
    pub ext_masters: Option<bool>,
    #[prost(string, repeated, tag = "31")]
    pub skip_mnt: Vec<String>,
    #[prost(string, repeated, tag = "32")]
    pub enable_fs: Vec<String>,
    #[prost(message, repeated, tag = "33")]
    pub unix_sk_ino: Vec<UnixSocket>,
    #[prost(enumeration = "CgroupMode", optional, tag = "34")]
    pub manage_cgroups_mode: Option<i32>,
    #[prost(uint32, optional, tag = "35")]
    pub ghost_limit: Option<u32>,
    #[prost(string, repeated, tag = "36")]
    pub irmap_scan_paths: Vec<String>,
    #[prost(string, repeated, tag = "37")]
    pub external: Vec<String>,
    #[prost(uint32, optional, tag = "38")]
    pub empty_ns: Option<u32>,
    #[prost(message, repeated, tag = "39")]
    pub join_ns: Vec<JoinNs>,
    #[prost(string, optional, tag = "41")]
    pub cgroup_props: Option<String>,
    #[prost(string, optional, tag = "42")]
    pub cgroup_props_file: Option<String>,
    #[prost(string, repeated, tag = "43")]
    pub cgroup_dump_controller: Vec<String>,
    #[prost(string, optional, tag = "44")]
    pub freeze_cgroup: Option<String>,
    #[prost(uint32, optional, tag = "45")]
    pub timeout: Option<u32>,
    #[prost(bool, optional, tag = "46")]
    pub tcp_skip_in_flight: Option<bool>,
    #[prost(bool, optional, tag = "47")]
    pub weak_sysctls: Option<bool>,
    #[prost(bool, optional, tag = "48")]
    pub lazy_pages: Option<bool>,
    #[prost(int32, optional, tag = "49")]
    pub status_fd: Option<i32>,
    #[prost(bool, optional, tag = "50")]
    pub orphan_pts_master: Option<bool>,
    #[prost(string, optional, tag = "51")]
    pub config_file: Option<String>,
    #[prost(bool, optional, tag = "52")]
    pub tcp_close: Option<bool>,
    #[prost(string, optional, tag = "53")]
    pub lsm_profile: Option<String>,
    #[prost(string, optional, tag = "54")]
    pub tls_cacert: Option<String>,
    #[prost(string, optional, tag = "55")]
    pub tls_cacrl: Option<String>,
    #[prost(string, optional, tag = "56")]
    pub tls_cert: Option<String>,
    #[prost(string, optional, tag = "57")]
    pub tls_key: Option<String>,
    #[prost(bool, optional, tag = "58")]
    pub tls: Option<bool>,
    #[prost(bool, optional, tag = "59")]
    pub tls_no_cn_verify: Option<bool>,
    #[prost(string, optional, tag = "60")]
    pub cgroup_yard: Option<String>,
    #[prost(int32, optional, tag = "61")]
    pub pre_dump_mode: Option<i32>,
    #[prost(int32, optional, tag = "62")]
    pub pidfd_store_sk: Option<i32>,
    #[prost(string, optional, tag = "63")]
    pub lsm_mount_context: Option<String>,
    #[prost(enumeration = "NetworkLock", optional, tag = "64")]
    pub network_lock: Option<i32>,
    #[prost(bool, optional, tag = "65")]
    pub mntns_compat_mode: Option<bool>,
    #[prost(bool, optional, tag = "66")]
    pub skip_file_rwx_check: Option<bool>,
    #[prost(bool, optional, tag = "67")]
    pub unprivileged: Option<bool>,
    #[prost(string, optional, tag = "68")]
    pub images_dir: Option<String>,
    #[prost(bool, optional, tag = "69")]
    pub leave_stopped: Option<bool>,
    #[prost(bool, optional, tag = "70")]
    pub display_stats: Option<bool>,
    #[prost(bool, optional, tag = "71")]
    pub log_to_stderr: Option<bool>,
}

/// Features, asked for or there.
#[derive(Clone, Copy, PartialEq, Message)]
#[expect(missing_docs, reason = "field names of the protocol")]
pub struct Features {
    #[prost(bool, optional, tag = "1")]
    pub mem_track: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    pub lazy_pages: Option<bool>,
    #[prost(bool, optional, tag = "3")]
    pub pidfd_store: Option<bool>,
}

/// A request.
#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "field names of the protocol")]
pub struct Request {
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub r#type: i32,
    #[prost(message, optional, tag = "2")]
    pub opts: Option<Options>,
    #[prost(bool, optional, tag = "3")]
    pub notify_success: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub keep_open: Option<bool>,
    #[prost(message, optional, tag = "5")]
    pub features: Option<Features>,
    #[prost(uint32, optional, tag = "6")]
    pub pid: Option<u32>,
}

/// What a checkpoint answers.
#[derive(Clone, Copy, PartialEq, Message)]
#[expect(missing_docs, reason = "field names of the protocol")]
pub struct Dumped {
    #[prost(bool, optional, tag = "1")]
    pub restored: Option<bool>,
}

/// What a restore answers.
#[derive(Clone, Copy, PartialEq, Message)]
#[expect(missing_docs, reason = "field names of the protocol")]
pub struct Restored {
    #[prost(int32, required, tag = "1")]
    pub pid: i32,
}

/// A stage.
#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "field names of the protocol")]
pub struct Notify {
    #[prost(string, optional, tag = "1")]
    pub script: Option<String>,
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
}

/// A version.
#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "field names of the protocol")]
pub struct Version {
    #[prost(int32, required, tag = "1")]
    pub major_number: i32,
    #[prost(int32, required, tag = "2")]
    pub minor_number: i32,
    #[prost(string, optional, tag = "3")]
    pub gitid: Option<String>,
    #[prost(int32, optional, tag = "4")]
    pub sublevel: Option<i32>,
    #[prost(int32, optional, tag = "5")]
    pub extra: Option<i32>,
    #[prost(string, optional, tag = "6")]
    pub name: Option<String>,
}

/// An answer.
#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "field names of the protocol")]
pub struct Response {
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub r#type: i32,
    #[prost(bool, required, tag = "2")]
    pub success: bool,
    #[prost(message, optional, tag = "3")]
    pub dump: Option<Dumped>,
    #[prost(message, optional, tag = "4")]
    pub restore: Option<Restored>,
    #[prost(message, optional, tag = "5")]
    pub notify: Option<Notify>,
    #[prost(message, optional, tag = "6")]
    pub ps: Option<PageServer>,
    #[prost(int32, optional, tag = "7")]
    pub cr_errno: Option<i32>,
    #[prost(message, optional, tag = "8")]
    pub features: Option<Features>,
    #[prost(string, optional, tag = "9")]
    pub cr_errmsg: Option<String>,
    #[prost(message, optional, tag = "10")]
    pub version: Option<Version>,
    #[prost(int32, optional, tag = "11")]
    pub status: Option<i32>,
}

impl Response {
    /// An answer without anything in it.
    pub fn new(kind: Kind, success: bool) -> Self {
        Self {
            r#type: kind as i32,
            success,
            ..Self::default()
        }
    }
}

/// Numbers of a checkpoint, in microseconds and pages.
#[derive(Clone, Copy, PartialEq, Message)]
#[expect(missing_docs, reason = "field names of the protocol")]
pub struct DumpStats {
    #[prost(uint32, required, tag = "1")]
    pub freezing_time: u32,
    #[prost(uint32, required, tag = "2")]
    pub frozen_time: u32,
    #[prost(uint32, required, tag = "3")]
    pub memdump_time: u32,
    #[prost(uint32, required, tag = "4")]
    pub memwrite_time: u32,
    #[prost(uint64, required, tag = "5")]
    pub pages_scanned: u64,
    #[prost(uint64, required, tag = "6")]
    pub pages_skipped_parent: u64,
    #[prost(uint64, required, tag = "7")]
    pub pages_written: u64,
    #[prost(uint32, optional, tag = "8")]
    pub irmap_resolve: Option<u32>,
    #[prost(uint64, required, tag = "9")]
    pub pages_lazy: u64,
    #[prost(uint64, optional, tag = "10")]
    pub page_pipes: Option<u64>,
    #[prost(uint64, optional, tag = "11")]
    pub page_pipe_bufs: Option<u64>,
    #[prost(uint64, optional, tag = "12")]
    pub shpages_scanned: Option<u64>,
    #[prost(uint64, optional, tag = "13")]
    pub shpages_skipped_parent: Option<u64>,
    #[prost(uint64, optional, tag = "14")]
    pub shpages_written: Option<u64>,
}

/// Numbers of a restore, in microseconds and pages.
#[derive(Clone, Copy, PartialEq, Message)]
#[expect(missing_docs, reason = "field names of the protocol")]
pub struct RestoreStats {
    #[prost(uint64, required, tag = "1")]
    pub pages_compared: u64,
    #[prost(uint64, required, tag = "2")]
    pub pages_skipped_cow: u64,
    #[prost(uint32, required, tag = "3")]
    pub forking_time: u32,
    #[prost(uint32, required, tag = "4")]
    pub restore_time: u32,
    #[prost(uint64, optional, tag = "5")]
    pub pages_restored: Option<u64>,
}

/// What is in a stats file.
#[derive(Clone, Copy, PartialEq, Message)]
#[expect(missing_docs, reason = "field names of the protocol")]
pub struct Stats {
    #[prost(message, optional, tag = "1")]
    pub dump: Option<DumpStats>,
    #[prost(message, optional, tag = "2")]
    pub restore: Option<RestoreStats>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hexadecimal(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn a_version_request_is_the_two_bytes_that_runtimes_send() {
        let request = Request::decode(&hexadecimal("08 0a")[..]).unwrap();
        assert_eq!(request.r#type(), Kind::Version);
        assert_eq!(request.opts, None);
        // crun sends options of which only the directory, -1, is there.
        let bytes = hexadecimal("08 0a 12 0b 08 ffffffffffffffffff01");
        let request = Request::decode(&bytes[..]).unwrap();
        assert_eq!(request.opts.unwrap().images_dir_fd, Some(-1));
    }

    #[test]
    fn what_runc_sends_to_checkpoint_is_understood() {
        // images_dir_fd 7, pid 6400, leave_running and file_locks false, log_level 4, log_file
        // "dump.log", notify_scripts, one external mount, manage_cgroups, empty_ns 0x40000000,
        // orphan_pts_master.
        let options = hexadecimal(
            "08 07  10 80 32  18 00  40 00  48 04  52 08 64 75 6d 70 2e 6c 6f 67  60 01
             ba 01 17  0a 0a 2f 70 72 6f 63 2f 6b 65 79 73  12 09 2f 64 65 76 2f 6e 75 6c 6c
             c0 01 01  b0 02 80 80 80 80 04  90 03 01",
        );
        let mut bytes = hexadecimal("08 01 12");
        bytes.push(options.len() as u8);
        bytes.extend(options);
        let request = Request::decode(&bytes[..]).unwrap();
        assert_eq!(request.r#type(), Kind::Dump);
        let options = request.opts.unwrap();
        assert_eq!(options.images_dir_fd, Some(7));
        assert_eq!(options.pid, Some(6400));
        assert_eq!(options.leave_running, Some(false));
        assert_eq!(options.file_locks, Some(false));
        assert_eq!(options.tcp_established, None);
        assert_eq!(options.log_file.as_deref(), Some("dump.log"));
        assert_eq!(options.ext_mnt[0].key, "/proc/keys");
        assert_eq!(options.ext_mnt[0].val, "/dev/null");
        assert_eq!(options.manage_cgroups, Some(true));
        assert_eq!(options.empty_ns, Some(0x4000_0000));
        assert_eq!(options.orphan_pts_master, Some(true));
    }

    #[test]
    fn answers_are_as_short_as_those_that_were_recorded() {
        let notify = |script: &str, pid| Response {
            notify: Some(Notify {
                script: Some(script.into()),
                pid,
            }),
            ..Response::new(Kind::Notify, true)
        };
        assert_eq!(notify("pre-dump", None).encode_to_vec().len(), 16);
        assert_eq!(notify("network-lock", None).encode_to_vec().len(), 20);
        assert_eq!(
            notify("setup-namespaces", Some(29950))
                .encode_to_vec()
                .len(),
            28
        );
        assert_eq!(
            notify("post-restore", Some(29950)).encode_to_vec().len(),
            24
        );
        let features = Response {
            features: Some(Features {
                mem_track: Some(false),
                lazy_pages: Some(false),
                pidfd_store: Some(false),
            }),
            ..Response::new(Kind::FeatureCheck, true)
        };
        assert_eq!(features.encode_to_vec().len(), 12);
        let request = Request {
            r#type: Kind::Notify as i32,
            notify_success: Some(true),
            ..Request::default()
        };
        assert_eq!(request.encode_to_vec(), [0x08, 0x06, 0x18, 0x01]);
    }

    #[test]
    fn a_message_of_a_future_caller_is_read_as_far_as_it_is_known() {
        // Field 200 of the options, a string.
        let bytes = hexadecimal("08 01 12 07 10 2a c2 0c 02 68 69");
        let request = Request::decode(&bytes[..]).unwrap();
        assert_eq!(request.opts.unwrap().pid, Some(42));
    }
}
