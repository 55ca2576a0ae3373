//! The two planted mistakes ([`tidemark_wire::planted`]) of telling before the sync what holds only
//! after it.

use tidemark_wire::frame::RecordsBody;
use tidemark_wire::planted::{self, Bug};
use tidemark_wire::{Seq, VolumeId};

use super::observer::Observer;
use super::session::Batch;
use super::volume::Live;
use crate::journal::Mark;

/// Does nothing, unless one of them was planted: acknowledges what was appended up to `last`, or
/// lists the points in the batch.
pub(super) fn tell(live: Option<&Live>, last: Seq, batch: &Batch, observer: &dyn Observer) {
    let Some(live) = live else { return };
    if planted::is(Bug::AcknowledgedEarly) {
        live.port.durable(last);
    }
    if planted::is(Bug::PointListedEarly)
        && let Ok(records) = RecordsBody::decode(&batch.body)
    {
        let whole = records.records().filter_map(Result::ok);
        let marks: Vec<_> =
            whole.filter_map(|record| Mark::from_record(&record).ok().flatten()).collect();
        observer.marks(VolumeId::NIL, &marks);
    }
}
