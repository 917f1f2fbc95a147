use super::*;
use crate::proc::maps;

/// A sample has a line for each line of a captured maps: segment, kind, and the line itself.
fn check(name: &str, sample: &str, hints: &Hints) {
    let split = |line: &'static str| -> (String, &'static str) {
        let (class, region) = line.split_once('|').unwrap();
        (class.trim().to_owned(), region)
    };
    let sample: &'static str = Box::leak(sample.to_owned().into_boxed_str());
    let (wanted, lines): (Vec<_>, Vec<_>) = sample.lines().map(split).unzip();
    let areas = maps::parse(lines.join("\n")).unwrap();
    for ((wanted, line), class) in wanted.iter().zip(lines).zip(classify(&areas, hints)) {
        let found = format!("{} {}", class.segment as u8, class.kind);
        assert_eq!(&found, wanted, "{name}: {line}");
    }
}

macro_rules! samples {
    ($($test:ident $file:literal)*) => {$(
        #[test]
        fn $test() {
            let text = include_str!(concat!("samples/", $file));
            check($file, text, &Hints::default());
        }
    )*};
}

samples! {
    the_seed_is_as_it_was_given "bash-centos7.txt"
    a_position_independent_program "bash.txt"
    a_static_program "busybox.txt"
    threads_with_arenas_and_stacks "python.txt"
    generated_code_and_text_mapped_twice "node.txt"
    a_program_without_a_break_area "redis.txt"
    a_java_virtual_machine "java.txt"
    a_static_go_program "go.txt"
    a_go_program_with_c_libraries "runc.txt"
    shared_memory_devices_and_other_objects "objects.txt"
}
