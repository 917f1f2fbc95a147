//! A model of the kernel makes random histories; the steps that are planned for what is left are
//! verified by the model inside [`births`].

use super::model::Kernel;
use super::*;

impl Kernel {
    fn with_init() -> Self {
        let mut kernel = Self::default();
        kernel.spawn(1).unwrap();
        kernel.setsid(1).unwrap();
        kernel
    }

    fn members(&self) -> Vec<Member> {
        self.0
            .iter()
            .map(|(pid, model)| Member {
                pid: *pid,
                ppid: model.ppid,
                pgid: model.pgid,
                sid: model.sid,
                exit_signal: 17,
                subreaper: model.subreaper,
                zombie: model.zombie.then_some(0),
            })
            .collect()
    }
}

fn check(wanted: &Kernel, inherits: &dyn Fn(i32, i32) -> bool) -> Result<()> {
    let members = wanted.members();
    let steps = births(&members, &BTreeSet::new(), inherits)?;
    let filled = steps
        .iter()
        .filter(|step| matches!(step, Step::Memory { .. }))
        .count();
    let alive = members.iter().filter(|one| one.zombie.is_none()).count();
    assert_eq!(filled, alive);
    Ok(())
}

/// xorshift: the same histories in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

#[test]
fn a_daemon_that_forked_twice_keeps_its_dead_session() {
    let mut kernel = Kernel::with_init();
    kernel.fork(1, 5).unwrap();
    kernel.setsid(5).unwrap();
    kernel.fork(5, 6).unwrap();
    kernel.exit(5).unwrap();
    kernel.reap(5);
    assert_eq!(kernel.0[&6].ppid, 1);
    check(&kernel, &|_, _| false).unwrap();
}

#[test]
fn a_pipeline_whose_first_process_is_gone_keeps_its_group() {
    let mut kernel = Kernel::with_init();
    for pid in [7, 8, 9] {
        kernel.fork(1, pid).unwrap();
        kernel.setpgid(pid, 7).unwrap();
    }
    kernel.exit(7).unwrap();
    kernel.reap(7);
    check(&kernel, &|_, _| false).unwrap();
}

#[test]
fn records_that_contradict_each_other_are_refused() {
    let member = |pid, ppid| Member {
        pid,
        ppid,
        ..Member::default()
    };
    for members in [
        vec![member(1, 0), member(1, 0)],
        vec![member(1, 0), member(2, 3)],
        vec![member(1, 0), member(2, 3), member(3, 2)],
        vec![member(-4, 0)],
    ] {
        let error = births(&members, &BTreeSet::new(), &|_, _| false).unwrap_err();
        assert_eq!(error.code(), "E-TREE");
    }
}

/// How many of some random histories cannot be repeated.
fn impossible(histories: usize, subreapers: bool) -> usize {
    let mut random = Random(0x5eed_0cea);
    let mut impossible = 0;
    for _ in 0..histories {
        let mut kernel = Kernel::with_init();
        let mut next = 2;
        for _ in 0..random.below(60) {
            let alive: Vec<i32> = kernel
                .0
                .iter()
                .filter(|(_, one)| !one.zombie)
                .map(|(pid, _)| *pid)
                .collect();
            let pid = alive[random.below(alive.len())];
            match random.below(12) {
                0..=4 => {
                    kernel.fork(pid, next).unwrap();
                    next += 1;
                }
                5 | 6 if !kernel.0.values().any(|one| one.pgid == pid) => {
                    kernel.setsid(pid).unwrap()
                }
                7 | 8 => {
                    let groups: Vec<i32> =
                        kernel.0.values().map(|one| one.pgid).chain([pid]).collect();
                    let pgid = groups[random.below(groups.len())];
                    if kernel.can_join(pid, pgid) {
                        kernel.setpgid(pid, pgid).unwrap();
                    }
                }
                9 | 10 if pid != 1 => {
                    kernel.exit(pid).unwrap();
                    if random.below(3) > 0 {
                        kernel.reap(pid);
                    }
                }
                11 if subreapers && random.below(4) == 0 => {
                    kernel.0.get_mut(&pid).unwrap().subreaper = true
                }
                _ => {}
            }
        }
        let heirs = random.below(3);
        if let Err(error) = check(&kernel, &move |_, child| child as usize % 3 < heirs) {
            assert_eq!(error.code(), "E-TREE");
            impossible += 1;
        }
    }
    impossible
}

#[test]
fn random_histories_are_repeated() {
    assert_eq!(impossible(3000, false), 0);
}

/// A session whose leader is gone and whose orphans were adopted in unrelated places is refused, not
/// made wrong.
#[test]
fn random_histories_with_subreapers_are_repeated_or_refused() {
    let refused = impossible(3000, true);
    assert!(refused < 60, "{refused} of 3000");
}
