//! What this kernel and these rights allow: each interface that the engine stands on, tried in a way
//! that changes nothing, and what it costs where it is missing.

mod ground;
mod memory;
mod namespaces;
mod processes;
mod rights;

use ground::Ground;
pub use ground::Outcome;

/// How far something is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// All of it.
    Ok,
    /// Some of it.
    Limited,
    /// None of it.
    Missing,
}

/// The answer to one question.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// Stable, for programs: `pagemap-scan`.
    pub name: String,
    /// How far it is there.
    pub state: State,
    /// What was seen: a version, a number, an error.
    pub seen: String,
    /// What cannot be done without it; empty where all of it is there.
    pub cost: String,
    /// What to do about it; empty where all of it is there.
    pub remedy: String,
    /// Without it neither a checkpoint nor a restore works.
    pub indispensable: bool,
}

/// One question.
struct Question {
    name: &'static str,
    indispensable: bool,
    ask: fn(&Ground) -> Outcome,
    cost: &'static str,
    remedy: &'static str,
}

const fn needed(
    name: &'static str,
    ask: fn(&Ground) -> Outcome,
    cost: &'static str,
    remedy: &'static str,
) -> Question {
    Question {
        name,
        indispensable: true,
        ask,
        cost,
        remedy,
    }
}

const fn useful(
    name: &'static str,
    ask: fn(&Ground) -> Outcome,
    cost: &'static str,
    remedy: &'static str,
) -> Question {
    Question {
        name,
        indispensable: false,
        ask,
        cost,
        remedy,
    }
}

/// Asks everything. Starts two children of its own, which do nothing, and ends them.
pub fn host() -> Vec<Finding> {
    let ground = Ground::new();
    let tables = [
        processes::QUESTIONS,
        memory::QUESTIONS,
        namespaces::QUESTIONS,
        rights::QUESTIONS,
    ];
    let mut findings: Vec<Finding> = tables
        .into_iter()
        .flatten()
        .map(|question| answer(question, &ground))
        .collect();
    findings.extend(rights::capabilities());
    findings
}

fn answer(question: &Question, ground: &Ground) -> Finding {
    let (state, seen) = match (question.ask)(ground) {
        Outcome::Ok(seen) => (State::Ok, seen),
        Outcome::Limited(seen) => (State::Limited, seen),
        Outcome::Missing(seen) => (State::Missing, seen),
    };
    let unless_ok = |text: &str| match state {
        State::Ok => String::new(),
        _ => text.to_owned(),
    };
    Finding {
        name: question.name.to_owned(),
        state,
        seen,
        cost: unless_ok(question.cost),
        remedy: unless_ok(question.remedy),
        indispensable: question.indispensable,
    }
}

/// Whether containers can be checkpointed and restored at all: nothing indispensable is missing.
pub fn is_usable(findings: &[Finding]) -> bool {
    !findings
        .iter()
        .any(|finding| finding.indispensable && finding.state == State::Missing)
}

#[cfg(test)]
mod tests;
