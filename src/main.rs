//! argv → front; error → exit code.

use ocimig::checkpoint::track;
use ocimig::restore::sweep;
use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let own_name = arguments.next().unwrap_or_default();
    let rest: Vec<OsString> = arguments.collect();
    let own_name = std::path::Path::new(&own_name).file_name();
    match own_name.and_then(|name| name.to_str()) {
        Some(track::NAME) => return track::main(rest.into_iter()),
        Some(sweep::NAME) => return sweep::main(rest),
        Some("criu") => return ocimig::criu::command::main(rest),
        Some("ocimig-runtime" | "ocimig-runc" | "ocimig-crun") => {
            return ocimig::oci::runtime_front::main(own_name.unwrap_or_default(), rest);
        }
        _ => {}
    }
    match rest.first().and_then(|word| word.to_str()) {
        Some("criu") => ocimig::criu::command::main(rest.into_iter().skip(1)),
        Some("runtime") => {
            ocimig::oci::runtime_front::main("ocimig-runtime".as_ref(), rest.into_iter().skip(1))
        }
        Some("hook") => ocimig::oci::hook::main(rest.into_iter().skip(1)),
        _ => ocimig::cli::main(),
    }
}
