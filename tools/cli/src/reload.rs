//! `tidemark reload`: the collector reads its configuration anew.

use tidemark_collector::control::api::Reloaded;
use tidemark_collector::control::client::Client;

use crate::console::{Console, Stop};

/// Asks and shows.
pub(crate) fn run(client: &Client, console: &mut Console<'_>) -> Result<(), Stop> {
    console.show(&client.reload()?, text)
}

fn text(done: &Reloaded) -> String {
    let mut out = match done.changed.is_empty() {
        true => "nothing has changed that can change while the collector runs\n".to_owned(),
        false => format!("in force now: {}\n", done.changed.join(", ")),
    };
    if !done.kept.is_empty() {
        out += &format!("waits for a restart of the collector: {}\n", done.kept.join(", "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_restart_is_named() {
        let done = Reloaded { changed: vec!["policy".into()], kept: vec!["data_dir".into()] };
        let shown = text(&done);
        assert_eq!(shown, "in force now: policy\nwaits for a restart of the collector: data_dir\n");
    }
}
