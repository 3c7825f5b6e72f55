//! CPU time and resident memory of processes with their children, and of the whole machine.

use std::collections::HashMap;
use std::fs;

/// What some processes have used until now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// CPU seconds.
    pub(crate) cpu: f64,
    /// Bytes of resident memory.
    pub(crate) resident: u64,
}

/// All of it at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    /// The tunnel: gateway and client together.
    pub(crate) tunnel: Usage,
    /// The load and the far end.
    ours: Usage,
    /// CPU seconds of the whole machine.
    machine: f64,
}

/// Whose usage is taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watched {
    /// The tunnel's processes.
    pub(crate) tunnel: Vec<u32>,
    /// The far end's.
    pub(crate) target: Vec<u32>,
}

impl Watched {
    pub(crate) fn sample(&self) -> Sample {
        let children = children();
        let sum = |roots: &[u32]| {
            let mut all = roots.to_vec();
            let mut at = 0;
            while let Some(process) = all.get(at) {
                let more = children.get(process).cloned().unwrap_or_default();
                all.extend(more);
                at += 1;
            }
            all.iter().filter_map(|&process| of(process)).fold(Usage::default(), |sum, one| Usage {
                cpu: sum.cpu + one.cpu,
                resident: sum.resident + one.resident,
            })
        };
        let target = sum(&self.target);
        let load = of(std::process::id()).unwrap_or_default();
        let ours = Usage { cpu: target.cpu + load.cpu, resident: 0 };
        Sample { tunnel: sum(&self.tunnel), ours, machine: machine() }
    }
}

impl Sample {
    /// CPU seconds of the tunnel since `before`.
    pub(crate) fn cpu_since(&self, before: &Self) -> f64 {
        self.tunnel.cpu - before.tunnel.cpu
    }

    /// CPU seconds since `before` of whatever runs here and is not measured.
    pub(crate) fn foreign_since(&self, before: &Self) -> f64 {
        let known = self.cpu_since(before) + self.ours.cpu - before.ours.cpu;
        (self.machine - before.machine - known).max(0.0)
    }
}

fn ticks() -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a hundred")]
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    ticks
}

/// The fields of `/proc/N/stat` from the state on: the name before it may hold anything.
fn fields(process: u32) -> Option<Vec<u64>> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    Some(rest.split(' ').map(|field| field.parse().unwrap_or(0)).collect())
}

#[expect(clippy::cast_precision_loss, reason = "ticks of a run are far below 2^52")]
fn of(process: u32) -> Option<Usage> {
    let fields = fields(process)?;
    let cpu = (fields.get(11)? + fields.get(12)?) as f64 / ticks();
    Some(Usage { cpu, resident: fields.get(21)? * rustix::param::page_size() as u64 })
}

fn children() -> HashMap<u32, Vec<u32>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        if let Some(parent) = fields(process).and_then(|fields| u32::try_from(*fields.get(1)?).ok()) {
            children.entry(parent).or_default().push(process);
        }
    }
    children
}

#[expect(clippy::cast_precision_loss, reason = "ticks of a machine's life are far below 2^52")]
fn machine() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    // user, nice, system; not idle and iowait; irq, softirq.
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|&at| fields.get(at)).sum();
    busy as f64 / ticks()
}
