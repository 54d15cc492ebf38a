//! The program of the campaign of kills.
//!
//! `stepper do SEED FROM TO DIRECTORY JOURNAL` performs steps of the seed's plan; `stepper judge SEED LOW HIGH
//! DIRECTORY` prints after how many steps the directory looks as it does, or ends with a failing status and says what
//! is wrong; `stepper judge-names ...` is content when each name by itself looks as it did at some time, and prints
//! LOW.

use std::path::Path;
use std::process::ExitCode;

use sheaf_tests::campaign::{Plan, model, perform};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize| arguments[index].parse::<u64>().expect("a number");
    let plan = Plan::new(number(1));
    let (first, last, directory) = (number(2) as usize, number(3) as usize, Path::new(&arguments[4]));
    match arguments[0].as_str() {
        "do" => perform::perform(&plan, first..last.min(plan.steps.len()), directory, Path::new(&arguments[5])),
        verb @ ("judge" | "judge-names") => {
            let verdict =
                model::Found::read(directory).map_err(|error| error.to_string()).and_then(|found| match verb {
                    "judge" => model::judge(&plan, &found, first..=last),
                    _ => model::judge_names(&plan, &found, first..=last).map(|()| first),
                });
            match verdict {
                Ok(count) => println!("{count}"),
                Err(problem) => {
                    println!("{problem}");
                    return ExitCode::FAILURE;
                }
            }
        }
        other => panic!("{other}: do, judge or judge-names"),
    }
    ExitCode::SUCCESS
}
