//! What every command says of itself.

mod command;

use command::reeve;

const COMMANDS: [&[&str]; 9] = [
    &["explain"],
    &["policy", "check"],
    &["flows"],
    &["status"],
    &["endpoints"],
    &["identities"],
    &["maps"],
    &["problems"],
    &["completion"],
];

#[test]
fn every_command_says_what_it_does_and_gives_examples() {
    for command in COMMANDS {
        let told = reeve(&[command, &["--help"]].concat());
        let name = command.join(" ");
        let example = format!("reeve {name}");
        let has_example = told.out.split_once("Examples:\n").is_some_and(|(_, examples)| examples.contains(&example));
        assert!(told.code == 0 && has_example, "{name}: {told:?}");
        assert!(told.out.lines().all(|line| line.chars().count() <= 100), "{name}: {}", told.out);
    }
}

#[test]
fn completion_knows_the_commands() {
    let told = reeve(&["completion", "bash"]);
    assert_eq!((told.err.as_str(), told.code), ("", 0));
    for command in COMMANDS {
        assert!(told.out.contains(command[0]), "{command:?} is not in {}", told.out);
    }
    assert!(told.out.contains("--manifests") && told.out.contains("--follow"));
}

#[test]
fn output_that_is_no_terminal_has_no_colour() {
    let told = reeve(&["--help"]);
    assert!(!told.out.contains('\x1b'), "{}", told.out);
}
