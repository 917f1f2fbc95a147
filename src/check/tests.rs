use super::*;
use std::collections::BTreeSet;

#[test]
fn the_host_of_these_tests_is_usable_and_every_gap_has_its_price() {
    let findings = host();
    let lacking: Vec<_> = findings
        .iter()
        .filter(|one| one.indispensable && one.state != State::Ok)
        .collect();
    assert!(is_usable(&findings), "{lacking:?}");
    for finding in &findings {
        let priced = !finding.cost.is_empty() && !finding.remedy.is_empty();
        assert_eq!(priced, finding.state != State::Ok, "{finding:?}");
    }
}

#[test]
fn names_are_stable_words_and_each_is_used_once() {
    let findings = host();
    let names: BTreeSet<&str> = findings.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names.len(), findings.len());
    let is_word = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    for name in &names {
        assert!(
            name.split('-')
                .all(|part| !part.is_empty() && part.chars().all(is_word)),
            "{name}"
        );
    }
    for name in ["ptrace", "pagemap-scan", "cap-sys-resource", "nftables"] {
        assert!(names.contains(name), "{name}");
    }
}

#[test]
fn a_gap_that_is_indispensable_makes_a_host_unusable() {
    let finding = |indispensable, state| Finding {
        name: "x".to_owned(),
        state,
        seen: String::new(),
        cost: String::new(),
        remedy: String::new(),
        indispensable,
    };
    assert!(is_usable(&[
        finding(true, State::Ok),
        finding(true, State::Limited)
    ]));
    assert!(is_usable(&[finding(false, State::Missing)]));
    assert!(!is_usable(&[finding(true, State::Missing)]));
}

#[test]
fn without_rights_the_answers_differ() {
    // A user namespace takes nothing away from a thread, but another user does: root's pagemap shows
    // no frames, and mounts cannot be made.
    let asked = crate::sys::sysv::as_user(65534, 65534, || {
        let ground = Ground::new();
        let ask = |table: &'static [Question], name| {
            let question = table.iter().find(|one| one.name == name);
            question.map(|question| answer(question, &ground).state)
        };
        Ok([
            ask(memory::QUESTIONS, "page-frames"),
            ask(namespaces::QUESTIONS, "mount-api"),
            ask(namespaces::QUESTIONS, "namespace-net"),
        ])
    });
    assert_eq!(asked.unwrap(), [Some(State::Missing); 3]);
}
