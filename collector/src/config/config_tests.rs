#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

fn parse(text: &str) -> Result<Config> {
    Config::parse(text, Path::new("collector.toml"))
}

#[test]
fn an_empty_file_is_a_whole_configuration() {
    let config = parse("").unwrap();
    assert_eq!(config.data_dir, Path::new("/var/lib/tidemark/collector"));
    assert_eq!(config.listen[0].to_string(), "unix:/run/tidemark/ingest.sock");
    assert_eq!(config.policy, Policy::default());
    assert_eq!(config.policy.window, Duration::from_secs(86_400));
    assert_eq!(config.policy.point_interval, Some(Duration::from_secs(30)));
    assert_eq!(config.merge_bytes_per_second, Some(256 << 20));
    assert_eq!(config.clone_bytes_max, 10 << 30);
    assert_eq!(config.fuse_mount, None);
}

#[test]
fn every_key_is_known_by_the_tables_of_keys() {
    let text = "data_dir = '/d'\nlisten = ['tcp:127.0.0.1:7440']\ncontrol_socket = '/s'\n\
                sessions_max = 1\nvolumes_max = 2\nexports_max = 3\nfree_bytes_min = 4\n\
                behind_after_seconds = 5\nmerge_mib_per_second = 6\nfuse_mount = '/f'\n\
                clone_mib_max = 7\nerase_grace_seconds = 8\n[policy]\nwindow_seconds = 9\n\
                journal_mib_max = 10\npoint_interval_seconds = 11\n\
                compare_window = '22:30-04:00'\nverify_days = 12\nresync_days = 13\n";
    for key in raw::all_keys() {
        assert!(text.contains(key), "{key}");
    }
    let config = parse(text).unwrap();
    assert_eq!(config.exports_max, 3);
    assert_eq!(config.policy.journal_bytes_max, Some(10 << 20));
    assert_eq!(config.policy.compare_window.to_string(), "22:30-04:00");
    assert_eq!((config.policy.verify_days, config.policy.resync_days), (Some(12), Some(13)));
    assert_eq!(config.erase_grace, Duration::from_secs(8));
}

#[test]
fn zero_means_none_where_that_makes_sense() {
    let text = "merge_mib_per_second = 0\n[policy]\njournal_mib_max = 0\n\
                point_interval_seconds = 0\nverify_days = 0";
    let config = parse(text).unwrap();
    assert_eq!(config.merge_bytes_per_second, None);
    assert_eq!(config.policy.journal_bytes_max, None);
    assert_eq!(config.policy.point_interval, None);
    assert_eq!(config.policy.verify_days, None);
}

#[test]
fn mistakes_name_file_line_and_the_nearest_key() {
    for (text, wanted) in [
        (
            "\ndatadir = '/d'",
            "collector.toml:2: there is no key \"datadir\" here; did you mean data_dir",
        ),
        ("colour = 1", "collector.toml:1: there is no key \"colour\" here; the keys are"),
        ("[policy]\n\nwindow = 9", "collector.toml:3: there is no key \"window\" here"),
        ("[policy]\nwindow_second = 9", "did you mean window_seconds in the table [policy]?"),
        ("window_seconds = 9", "did you mean window_seconds in the table [policy]?"),
        ("[polcy]\nwindow_seconds = 9", "did you mean the table [policy]?"),
        ("[policy]\nwindow_seconds = 0", "collector.toml:2: window_seconds is 0, allowed are 1"),
        ("listen = [\n'udp:1'\n]", "collector.toml:2: listen:"),
        ("listen = ['tcp:0.0.0.0:1']", "can be reached from other machines"),
        ("\n\nsessions_max = 'x'", "collector.toml:3:"),
        ("sessions_max = 0", "collector.toml:1: sessions_max is 0"),
        ("clone_mib_max = 0", "clone_mib_max is 0, allowed are 1"),
        ("merge_mib_per_second = 1099511627777", "merge_mib_per_second is 1099511627777"),
        ("\ndata_dir = 'relative'", "collector.toml:2: data_dir"),
        ("\n\nfuse_mount = 'relative'", "collector.toml:3: fuse_mount"),
        ("\nlisten = []", "collector.toml:2: listen names no address"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(wanted), "{text:?}: {error}");
    }
}
