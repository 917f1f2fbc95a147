//! A thread that checks itself when the program is asked to.

use super::{Verdict, ensure};
use std::error::Error;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

/// What a worker's check says.
pub type Finding = Result<(), String>;

/// See the module documentation.
pub struct Worker {
    ask: Sender<()>,
    answer: Receiver<Finding>,
    /// The thread's id.
    pub tid: i32,
}

impl Worker {
    /// Starts a thread that runs `set_up`, and what that returns whenever asked.
    pub fn start<C>(
        set_up: impl FnOnce() -> Result<C, Box<dyn Error>> + Send + 'static,
    ) -> Result<Self, Box<dyn Error>>
    where
        C: FnMut() -> Finding + 'static,
    {
        let (ask, asked) = channel();
        let (tell, answer) = channel();
        let (say_tid, tid) = channel();
        thread::spawn(move || {
            let _ = say_tid.send(nix::unistd::gettid().as_raw());
            match set_up() {
                Ok(mut check) => {
                    let _ = tell.send(Ok(()));
                    for () in asked {
                        let _ = tell.send(check());
                    }
                }
                Err(error) => drop(tell.send(Err(error.to_string()))),
            }
        });
        let worker = Self {
            ask,
            answer,
            tid: tid.recv()?,
        };
        worker.answer()?;
        Ok(worker)
    }

    /// Starts a thread that spends its time inside of `body`, in the function that it is given, and
    /// leaves and enters it again whenever asked.
    pub fn start_inside(
        body: impl Fn(&mut dyn FnMut()) -> Finding + Send + 'static,
    ) -> Result<Self, Box<dyn Error>> {
        let (ask, asked) = channel();
        let (tell, answer) = channel();
        let (say_tid, tid) = channel();
        thread::spawn(move || {
            let _ = say_tid.send(nix::unistd::gettid().as_raw());
            let _ = tell.send(Ok(()));
            let mut going = true;
            while going {
                let finding = body(&mut || going = asked.recv().is_ok());
                let _ = tell.send(finding);
            }
        });
        let worker = Self {
            ask,
            answer,
            tid: tid.recv()?,
        };
        worker.answer()?;
        Ok(worker)
    }

    /// The thread's verdict on itself.
    pub fn check(&self) -> Verdict {
        self.ask.send(())?;
        self.answer()
    }

    fn answer(&self) -> Verdict {
        let finding = self.answer.recv_timeout(Duration::from_secs(20))?;
        ensure!(
            finding.is_ok(),
            "thread {}: {}",
            self.tid,
            finding.unwrap_err()
        );
        Ok(())
    }
}

/// The check of all of `workers`.
pub fn check_all(workers: Vec<Worker>) -> super::Check {
    Box::new(move |_| workers.iter().try_for_each(Worker::check))
}
