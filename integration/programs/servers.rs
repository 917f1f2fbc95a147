//! Servers, with clients whose connections stay.

use super::{Config, Container, Program, config};
use crate::harness::read;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// Waits for something that a program inside does soon.
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + crate::harness::patience();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not in time");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A node HTTP server with a counter.
#[derive(Clone)]
pub struct Node {
    count: u64,
    ticks: u64,
    /// The port of the connection that the server keeps to itself.
    port: u64,
}

impl Node {
    fn ask(container: &Container) -> Value {
        let url = "http://127.0.0.1:8080/";
        let text = container.enter(&["/usr/bin/curl", "-sS", "--max-time", "30", url]);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
    }
}

impl Program for Node {
    fn config() -> Config {
        config(["/usr/bin/node", "/programs/server.js"])
    }

    fn reach(container: &Container) -> Self {
        container.stdout().wait_for_line("ready");
        for _ in 0..5 {
            Self::ask(container);
        }
        let answer = Self::ask(container);
        Self {
            count: 6,
            ticks: 0,
            port: answer["port"].as_u64().expect("a port"),
        }
    }

    fn goes_on(&mut self, container: &Container) {
        for _ in 0..3 {
            let answer = Self::ask(container);
            self.count += 1;
            assert_eq!(answer["count"], self.count, "{answer}");
            assert_eq!(answer["port"], self.port, "another connection: {answer}");
            assert_eq!(answer["sum"], 50_000_u64 * 49_999 / 2, "{answer}");
            let ticks = answer["ticks"].as_u64().unwrap();
            assert!(ticks >= self.ticks, "the timer went back: {answer}");
            self.ticks = ticks;
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A redis server with 200,000 keys and a client that is blocked in BLPOP.
#[derive(Clone)]
pub struct Redis {
    digest: String,
    /// The blocked client as the server lists it: id and address.
    client: String,
    pushed: u32,
}

impl Redis {
    fn cli(container: &Container, args: &[&str]) -> String {
        let text = container.enter(&[&["/usr/bin/redis-cli", "--raw"], args].concat());
        text.trim().to_owned()
    }

    fn blocked(container: &Container) -> Option<String> {
        let list = Self::cli(container, &["client", "list"]);
        let line = list.lines().find(|line| line.contains("cmd=blpop"))?;
        let kept = line
            .split(' ')
            .filter(|word| word.starts_with("id=") || word.starts_with("addr="));
        Some(kept.collect::<Vec<_>>().join(" "))
    }

    fn digest(container: &Container) -> String {
        Self::cli(container, &["debug", "digest"])
    }
}

impl Program for Redis {
    fn config() -> Config {
        config(["/bin/bash", "/programs/redis.sh"])
    }

    fn reach(container: &Container) -> Self {
        container.stdout().wait_for_line("200000");
        Self {
            client: eventually("a blocked client", || Self::blocked(container)),
            digest: Self::digest(container),
            pushed: 0,
        }
    }

    fn goes_on(&mut self, container: &Container) {
        assert_eq!(Self::cli(container, &["dbsize"]), "200000");
        assert_eq!(Self::digest(container), self.digest, "other data");
        self.pushed += 1;
        let word = format!("word-{}", self.pushed);
        Self::cli(container, &["rpush", "queue", &word]);
        eventually("the blocked client's answer", || {
            let popped = read(container.path("popped"))?;
            popped.contains(&word).then_some(())
        });
        let client = eventually("a blocked client", || Self::blocked(container));
        assert_eq!(client, self.client, "the client had to connect again");
    }
}

/// nginx with workers of another user and a request that is never quite sent.
#[derive(Clone)]
pub struct Nginx {
    /// pid inside → user ids.
    workers: BTreeMap<String, String>,
    asked: u32,
}

impl Nginx {
    fn workers(container: &Container) -> BTreeMap<String, String> {
        let mut workers = BTreeMap::new();
        for host_pid in container.host_pids() {
            let status = read(format!("/proc/{host_pid}/status")).unwrap_or_default();
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_default().trim().to_owned()
            };
            if field("Name:") == "nginx" {
                let pids = field("NSpid:");
                let pid = pids.split_whitespace().next_back().unwrap_or_default();
                workers.insert(pid.to_owned(), field("Uid:"));
            }
        }
        workers
    }
}

impl Program for Nginx {
    fn config() -> Config {
        config(["/bin/bash", "/programs/nginx.sh"])
    }

    fn reach(container: &Container) -> Self {
        container.stdout().wait_for_line("asking 1");
        let workers = eventually("a master and two workers", || {
            let workers = Self::workers(container);
            let others = workers.values().filter(|uid| !uid.starts_with('0'));
            (others.count() == 2 && workers.len() == 3).then_some(workers)
        });
        Self { workers, asked: 0 }
    }

    fn goes_on(&mut self, container: &Container) {
        let page = container.enter(&["/usr/bin/curl", "-sS", "http://127.0.0.1:8080/page"]);
        assert_eq!(page, "served\n");
        self.asked += 1;
        fs::write(container.path(&format!("go-{}", self.asked)), "").unwrap();
        let answer = format!("answer {}: HTTP/1.1 200 OK: served", self.asked);
        container.stdout().wait_for_line(&answer);
        let next = format!("asking {}", self.asked + 1);
        container.stdout().wait_for_line(&next);
        assert_eq!(Self::workers(container), self.workers);
    }
}
