//! This process's own figures, under the names that Prometheus's client libraries use (its documentation, "Writing client
//! libraries", "Process metrics").

use std::fs;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::change::Micros;

static STARTED: LazyLock<Micros> = LazyLock::new(Micros::now);

/// Remembers when the process began.
pub(super) fn begin() {
    LazyLock::force(&STARTED);
}

/// Registers what can be read; the rest is left out. The registry must have no prefix.
pub(super) fn register(registry: &mut Registry) {
    figure(registry, "process_cpu_seconds", "CPU time, user and system", cpu());
    figure(registry, "process_start_time_seconds", "When the process began", Some(seconds(STARTED.0)));
    figure(registry, "process_resident_memory_bytes", "Resident memory", resident());
    let files = fs::read_dir("/proc/self/fd").ok().map(|files| files.count());
    figure(
        registry,
        "process_open_fds",
        "Open files and sockets",
        files.and_then(|n| u32::try_from(n).ok()).map(f64::from),
    );
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a process or since 1970 are below 2^53")]
fn seconds(microseconds: i64) -> f64 {
    microseconds as f64 / 1e6
}

/// Source: proc(5), `/proc/pid/stat`: the fields after the name in brackets begin with the third.
fn cpu() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let fields = stat.rsplit_once(')')?.1.split_whitespace();
    let ticks: Vec<f64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    let per_second = u32::try_from(rustix::param::clock_ticks_per_second()).ok()?;
    (ticks.len() == 2).then(|| ticks.iter().sum::<f64>() / f64::from(per_second))
}

/// Source: proc(5), `/proc/pid/status`, `VmRSS`, in KiB.
fn resident() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse::<f64>().ok().map(|kib| kib * 1024.0)
}

fn figure(registry: &mut Registry, name: &str, help: &str, value: Option<f64>) {
    if let Some(value) = value {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    }
}
