//! `tidemark journal inspect`: the files of a journal and the records in them.

use tidemark_collector::control::api::{RecordInfo, RecordPage, SegmentInfo};
use tidemark_collector::control::client::Client;

use crate::args::JournalCommand;
use crate::console::{Console, Stop};
use crate::failure::Failure;
use crate::render::{self, Column};

/// Records asked for in one call; the rest of the limit is fetched page by page.
const PAGE_RECORDS: u32 = 1000;

/// Asks and shows; a damaged file is shown as far as it goes and is then a failure.
pub(crate) fn run(
    command: &JournalCommand,
    client: &Client,
    console: &mut Console<'_>,
) -> Result<(), Stop> {
    let JournalCommand::Inspect { volume, segment, after, limit } = command;
    let Some(segment) = segment else {
        return console.show(&client.segments(volume)?, |segments| files(segments));
    };
    let page = read(client, volume, segment, *after, *limit)?;
    console.show(&page, |page| text(volume, page))?;
    match &page.damage {
        Some(damage) => Err(Failure::new(format!("{segment} is damaged: {damage}")).into()),
        None => Ok(()),
    }
}

/// At most `limit` records, over as many calls as that takes.
fn read(
    client: &Client,
    volume: &str,
    segment: &str,
    after: u64,
    limit: u32,
) -> Result<RecordPage, Failure> {
    let mut whole = client.records(volume, segment, after, limit.min(PAGE_RECORDS))?;
    while let Some(after) = whole.next_after {
        let wanted = (limit as usize).saturating_sub(whole.records.len());
        let wanted = u32::try_from(wanted).unwrap_or(PAGE_RECORDS).min(PAGE_RECORDS);
        if wanted == 0 || whole.damage.is_some() {
            break;
        }
        let page = client.records(volume, segment, after, wanted)?;
        if page.next_after == Some(after) {
            return Err(Failure::new(format!(
                "reading {segment} makes no progress behind {after}"
            )));
        }
        whole.records.extend(page.records);
        (whole.segment, whole.next_after, whole.damage) =
            (page.segment, page.next_after, page.damage);
    }
    Ok(whole)
}

fn files(segments: &[SegmentInfo]) -> String {
    let columns = [
        Column::Text("SEGMENT"),
        Column::Number("FIRST"),
        Column::Number("LAST"),
        Column::Number("RECORDS"),
        Column::Number("SIZE"),
        Column::Text("STATE"),
    ];
    render::table(
        &columns,
        segments.iter().map(|segment| {
            vec![
                segment.name.clone(),
                segment.first_seq.to_string(),
                render::or_dash(segment.last_seq, |seq| seq.to_string()),
                segment.records.to_string(),
                render::size(segment.file_bytes),
                if segment.sealed { "sealed" } else { "open" }.to_owned(),
            ]
        }),
    )
}

fn text(volume: &str, page: &RecordPage) -> String {
    let columns = [
        Column::Number("SEQ"),
        Column::Text("TIME"),
        Column::Text("KIND"),
        Column::Number("OFFSET"),
        Column::Number("LENGTH"),
        Column::Number("STORED"),
        Column::Text("CODEC"),
        Column::Number("CHECKED"),
        Column::Text("DETAIL"),
    ];
    let mut out = render::table(&columns, page.records.iter().map(row));
    if let Some(after) = page.next_after {
        out += &format!(
            "\nThere is more: tidemark journal inspect {volume} {} --after {after}\n",
            page.segment.name
        );
    }
    out
}

fn row(record: &RecordInfo) -> Vec<String> {
    let detail = match (record.fua, record.detail.is_empty()) {
        (false, _) => record.detail.clone(),
        (true, true) => "FUA".to_owned(),
        (true, false) => format!("FUA, {}", record.detail),
    };
    vec![
        record.seq.to_string(),
        render::time(record.time),
        record.kind.clone(),
        record.offset_bytes.to_string(),
        record.len_bytes.to_string(),
        record.stored_bytes.to_string(),
        record.codec.clone(),
        record.checked.to_string(),
        detail,
    ]
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn records_are_decoded_for_a_person() {
        let segment = SegmentInfo {
            name: "0000000000000001.seg".into(),
            first_seq: 1,
            last_seq: Some(9),
            records: 2,
            file_bytes: 8192,
            sealed: true,
        };
        let record = RecordInfo {
            seq: 1,
            time: Timestamp::UNIX_EPOCH,
            kind: "write".into(),
            offset_bytes: 4096,
            len_bytes: 8192,
            stored_bytes: 100,
            codec: "snappy".into(),
            fua: true,
            checked: 2,
            detail: String::new(),
        };
        let page = RecordPage {
            segment: segment.clone(),
            records: vec![record],
            next_after: Some(1),
            damage: None,
        };
        let shown = text("disk", &page);
        let line: Vec<&str> =
            shown.lines().nth(1).expect("one record").split_whitespace().collect();
        assert_eq!(
            line,
            ["1", "1970-01-01T00:00:00Z", "write", "4096", "8192", "100", "snappy", "2", "FUA"]
        );
        assert!(shown.ends_with("inspect disk 0000000000000001.seg --after 1\n"), "{shown}");
        assert!(files(&[segment]).contains("8.0 KiB  sealed\n"));
    }
}
