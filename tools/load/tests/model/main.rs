//! Every state that the collector offers is one that the client's log says.
//!
//! A case is a protected disk and a collector in this process, joined by unix sockets, and a few
//! NBD connections that read, write, zero, trim and flush at the same time. Afterwards each record
//! of the journal is traced back to the operation that it belongs to, the clients' own data is
//! replayed in the order of the numbers, and the view of every number is compared with it.
//!
//! Settings, all from the environment:
//! - `TIDEMARK_MODEL_CASES`, `TIDEMARK_MODEL_OPS` (most operations of a case): the long form;
//! - `TIDEMARK_MODEL_SEED`: draws the cases of an earlier run again;
//! - `TIDEMARK_MODEL_RING_DIR`: a directory on tmpfs for the change rings;
//! - `TIDEMARK_MODEL_SPOIL`: makes the log or the model wrong, to see that it is found
//!   ([`spoil::Spoil`]).
#![allow(clippy::disallowed_methods, reason = "a test waits in real time")]

mod client;
mod effects;
mod figures;
mod journal;
mod link;
mod log;
mod owners;
mod plan;
mod replay;
mod run;
mod spoil;
mod world;

use std::cell::RefCell;
use std::str::FromStr;
use std::time::{Instant, SystemTime};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};

use figures::Figures;
use spoil::Spoil;

const CASES: u32 = 24;
const OPS_MAX: usize = 240;
/// A failing case is run again at most so often in search of a smaller one.
const SHRINKS_MAX: u32 = 8;
/// From so many cases on, every sort of event has to have happened.
const CASES_OF_A_WHOLE_RUN: u64 = 20;

fn setting<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}")))
}

fn fresh_seed() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    u64::from(since.subsec_nanos()) ^ (since.as_secs() << 30)
}

#[test]
fn every_view_equals_the_model() {
    let seed = setting("TIDEMARK_MODEL_SEED").unwrap_or_else(fresh_seed);
    let cases = setting("TIDEMARK_MODEL_CASES").unwrap_or(CASES);
    let ops_max = setting("TIDEMARK_MODEL_OPS").unwrap_or(OPS_MAX);
    let spoil: Option<Spoil> = setting("TIDEMARK_MODEL_SPOIL");
    println!("seed: {seed} (TIDEMARK_MODEL_SEED={seed} draws the same cases)");
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: if spoil.is_some() { 0 } else { SHRINKS_MAX },
        rng_seed: RngSeed::Fixed(seed),
        ..Config::default()
    };
    let figures = RefCell::new(Figures::default());
    let started = Instant::now();
    let strategy = plan::cases(ops_max)
        .prop_filter("a spoilt case has no gap", move |case| spoil.is_none() || case.is_gapless());
    let outcome = TestRunner::new(config).run(&strategy, |case| {
        run::case(&case, spoil, &mut figures.borrow_mut()).map_err(TestCaseError::fail)
    });
    let figures = figures.into_inner();
    println!("{figures}");
    println!("seconds: {:.1}", started.elapsed().as_secs_f64());
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, case)) => panic!("seed {seed}: {why}\nin {case:?}"),
        Err(TestError::Abort(why)) => panic!("seed {seed}: {why}"),
    }
    if figures.cases >= CASES_OF_A_WHOLE_RUN {
        assert_eq!(figures.untried(), Vec::<&str>::new(), "seed {seed}: not tried by any case");
    }
}
