use std::path::Path;

use super::Config;
use super::explain::nearest;

#[test]
fn the_nearest_key_is_named_and_not_the_first_that_is_near() {
    assert_eq!(nearest("ring_dr", &["king_dir", "ring_dir"]), Some("ring_dir"));
    assert_eq!(nearest("retention", &["name", "backing"]), None);
}

const GOOD: &str = "state_dir = '/s'\ncollector = 'unix:/c'\nworkers = 2\n[nbd]\n\
                    listen = ['unix:/n']\n[[volume]]\nname = 'data'\nbacking = '/b'\n\
                    ring_mib = 16\n";

#[test]
fn mistakes_name_file_line_and_the_nearest_key() {
    Config::parse(GOOD, Path::new("a.toml")).expect("a good configuration");
    for (from, to, wanted) in [
        (
            "state_dir",
            "statedir",
            "a.toml:1: there is no key \"statedir\"; did you mean state_dir?",
        ),
        ("backing", "baking", "a.toml:8: there is no key \"baking\"; did you mean backing?"),
        ("[nbd]", "[nbds]", "a.toml:4: there is no key \"nbds\"; did you mean nbd?"),
        ("workers", "colour", "a.toml:3: there is no key \"colour\"; the keys here are state_dir,"),
        ("unix:/c", "tcp:10.0.0.1:7", "a.toml:2: tcp:10.0.0.1:7 is not on this machine"),
        ("unix:/n", "tcp:0.0.0.0:7", "a.toml:5: tcp:0.0.0.0:7 is not on this machine"),
        ("unix:/c", "nowhere", "a.toml:2: \"nowhere\" is not an address"),
        ("'/s'", "'s'", "a.toml:1: \"s\" is not an absolute path"),
        ("= 2", "= 0", "a.toml:3: 0 can't be; give a number from 1 to 64"),
        ("= 16", "= 0", "a.toml:9: 0 can't be; give a number from 1 to 65536"),
        ("'data'", "'a b'", "a.toml:7: volume name \"a b\""),
        ("collector = 'unix:/c'\n", "", "missing field `collector`"),
        ("listen = ['unix:/n']", "", "a.toml: neither [nbd] listen nor"),
    ] {
        let text = GOOD.replacen(from, to, 1);
        let error = Config::parse(&text, Path::new("a.toml")).expect_err(to).to_string();
        assert!(error.contains(wanted), "{text}: {error}");
    }
}

/// Every key with a value that it may have, by table.
const EVERY: &str = "state_dir = '/s'\nring_dir = '/r'\ncollector = 'unix:/c'\nworkers = 2\n\
                     control_socket = '/a'\nlock_memory = false\nring_total_mib = 64\n[nbd]\n\
                     listen = ['unix:/n']\n[fuse]\nmount = '/m'\n[attach]\nnbd_connections = 2\n\
                     request_seconds_max = 30\ndead_connection_seconds = 60\n[[volume]]\n\
                     name = 'data'\nbacking = '/b'\nring_mib = 16\ncopy_mib_per_second = 5\n";

#[test]
fn every_key_of_every_table_is_known_and_every_misspelling_is_named() {
    let config = Config::parse(EVERY, Path::new("a.toml")).expect("every key is known");
    assert_eq!(config.volumes[0].copy_bytes_per_second(), Some(5 << 20));
    let keys = EVERY.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key);
    for (key, line) in keys.map(|key| {
        let is_it = |text: &str| text.starts_with(&format!("{key} ="));
        (key, EVERY.lines().position(is_it).expect("it is there") + 1)
    }) {
        let missing_letter = format!("{}{}", &key[..1], &key[2..]);
        let text = EVERY.replace(&format!("{key} = "), &format!("{missing_letter} = "));
        let error = Config::parse(&text, Path::new("a.toml")).expect_err(key).to_string();
        let wanted =
            format!("a.toml:{line}: there is no key {missing_letter:?}; did you mean {key}?");
        assert_eq!(error, wanted);
    }
}

#[test]
fn lines_that_contradict_each_other_are_named() {
    for (from, to, wanted) in [
        (
            "ring_total_mib = 64",
            "ring_total_mib = 15",
            "the change rings of 1 volume(s) take 16 MiB together, ring_total_mib allows 15",
        ),
        ("'/a'", "'/n'", "control_socket and [nbd] listen are both unix:/n"),
        ("['unix:/n']", "['unix:/n', 'unix:/n']", "[nbd] listen names unix:/n twice"),
        ("nbd_connections = 2", "nbd_connections = 0", "a.toml:13: 0 can't be"),
        ("'/a'", "'a'", "a.toml:5: \"a\" is not an absolute path"),
        ("false", "'no'", "a.toml:6: invalid type: string \"no\", expected a boolean"),
    ] {
        let text = EVERY.replacen(from, to, 1);
        let error = Config::parse(&text, Path::new("a.toml")).expect_err(to).to_string();
        assert!(error.contains(wanted), "{text}: {error}");
    }
}
