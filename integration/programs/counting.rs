//! Programs that count aloud, and stop counting when they find themselves damaged.

use super::{Config, Container, Program, config};
use crate::harness::Output;

/// What was counted so far: no number may be missing or come twice, across all lives.
#[derive(Clone)]
struct Count {
    word: &'static str,
    /// The first number of the life that is being watched: this or any up to the second.
    first: (u64, u64),
    /// How many numbers of this life were seen.
    seen: usize,
}

impl Count {
    fn new(word: &'static str) -> Self {
        Self {
            word,
            first: (1, 1),
            seen: 0,
        }
    }

    /// Waits for `more` numbers and judges all of this life.
    fn wait(&mut self, output: &Output, more: usize) {
        let (wanted, word) = (self.seen + more, self.word);
        let numbers = output.wait_for(&format!("{more} more of {word:?}"), |text| {
            assert!(!text.contains("damaged"), "{text}");
            let numbers = numbers(text, word);
            (numbers.len() >= wanted).then_some(numbers)
        });
        self.judge(&numbers);
        self.seen = numbers.len();
    }

    fn judge(&self, numbers: &[u64]) {
        let (least, most) = self.first;
        let first = numbers.first().copied().unwrap_or(least);
        assert!(
            (least..=most).contains(&first),
            "{} began at {first}, not at {least} to {most}",
            self.word
        );
        for pair in numbers.windows(2) {
            assert_eq!(pair[0] + 1, pair[1], "{} skips or repeats", self.word);
        }
    }

    /// The numbers of the life that a checkpoint was taken of. One that is gone has counted to the
    /// moment of the checkpoint and no further, one that goes on beyond it.
    fn taken(&mut self, container: &Container) {
        let gone = container.host_pids().is_empty();
        if gone {
            container.stdout().wait_for_end();
        }
        let numbers = numbers(&container.stdout().text(), self.word);
        self.judge(&numbers);
        let next = |seen: usize| match seen.checked_sub(1) {
            Some(last) => numbers[last] + 1,
            None => self.first.0,
        };
        let least = if gone { numbers.len() } else { self.seen };
        self.first = (next(least), next(numbers.len()));
        self.seen = 0;
    }
}

/// The numbers in the whole lines `word N`.
fn numbers(text: &str, word: &str) -> Vec<u64> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .filter_map(|line| line.strip_prefix(word)?.strip_prefix(' '))
        .map(|number| {
            number
                .parse()
                .unwrap_or_else(|_| panic!("{word} {number:?}"))
        })
        .collect()
}

macro_rules! counting {
    ($($(#[$doc:meta])* $name:ident counts $word:literal to $warm:literal by $args:expr;)*) => {
        $($(#[$doc])*
        #[derive(Clone)]
        pub struct $name(Count);

        impl Program for $name {
            fn config() -> Config {
                config($args)
            }

            fn reach(container: &Container) -> Self {
                let mut count = Count::new($word);
                count.wait(container.stdout(), $warm);
                Self(count)
            }

            fn goes_on(&mut self, container: &Container) {
                self.0.wait(container.stdout(), 12);
            }

            fn taken(&mut self, container: &Container) {
                self.0.taken(container);
            }
        })*
    };
}

counting! {
    /// A loop that forks a process for every number.
    Bash counts "Hello" to 10 by ["/bin/bash", "/programs/hello.sh"];
    /// Threads, sqlite, a subprocess, an unlinked file, epoll.
    Python counts "Round" to 12 by ["/usr/bin/python3", "-u", "/programs/many.py"];
    /// Compiled code and a garbage collector.
    Java counts "Round" to 40 by ["/usr/bin/java", "-Xmx128m", "/programs/Hot.java"];
}
