//! A metrics page: families, one after the other.

use std::fmt;

use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeLabelSet, NoLabelSet,
};
use prometheus_client::metrics::MetricType;

use switchyard_telemetry::histogram::HistogramReading;

/// No labels.
pub const NONE: [(&str, &str); 0] = [];

/// The page that metrics are written to.
pub struct Page<'a, 'e>(pub &'a mut DescriptorEncoder<'e>);

impl Page<'_, '_> {
    /// A gauge.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.gauges(name, help, [(NONE, value)])
    }

    /// Gauges, by labels.
    pub fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// Counters, by labels; `_total` is appended to the name.
    pub fn counters<L: EncodeLabelSet, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            let mut sample = family.encode_family(&labels)?;
            sample.encode_counter::<NoLabelSet, V, f64>(&value, None)?;
        }
        Ok(())
    }

    /// Histograms of times, by labels.
    pub fn histograms<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, HistogramReading)>,
    ) -> fmt::Result {
        let bounds = HistogramReading::bounds().map(|bound| bound.as_secs_f64());
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, reading) in samples {
            let bounds = bounds.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(reading.counts).collect();
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                reading.sum.as_secs_f64(),
                reading.count(),
                &buckets,
                None,
            )?;
        }
        Ok(())
    }
}
