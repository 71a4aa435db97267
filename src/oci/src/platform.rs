//! The platforms of images, ranked as containerd ranks them: the one that this processor runs best
//! comes first, and one that it does not run is rejected.

use super::config::host_architecture;
use super::error::Printable;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// An operating system, an architecture and possibly a variant of it, by Go's names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    os: String,
    architecture: String,
    /// Empty for the architecture's base: `v1` of amd64, `v8` of arm64.
    variant: String,
}

/// A text that does not name a platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is not a platform; write OS/ARCHITECTURE[/VARIANT], such as linux/arm64 or linux/arm/v7"
)]
pub struct InvalidPlatform(Printable);

impl Platform {
    /// Returns the platform with these names, with aliases replaced by Go's names.
    #[must_use]
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let os = match os.to_lowercase() {
            os if os == "macos" => "darwin".to_owned(),
            os => os,
        };
        let (architecture, variant) = (architecture.to_lowercase(), variant.to_lowercase());
        let (architecture, variant) = match (&*architecture, &*variant) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
            ("aarch64" | "arm64", "9" | "v9.0") => ("arm64", "v9"),
            ("aarch64" | "arm64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            other => other,
        };
        Self {
            os,
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }

    /// Returns the platform of this host, with its processor's variant.
    #[must_use]
    pub fn host() -> Self {
        let architecture = host_architecture();
        Self::new("linux", architecture, &host_variant(architecture))
    }

    /// Returns the operating system.
    #[must_use]
    pub fn os(&self) -> &str {
        &self.os
    }

    /// Returns how well an image for `other` suits, 0 best; `None` if it does not run. With
    /// `strict`, other architectures are rejected, even if the processor supports them.
    #[must_use]
    pub fn rank(&self, other: &Self, strict: bool) -> Option<usize> {
        self.runs()
            .iter()
            .take_while(|one| !strict || one.architecture == self.architecture)
            .position(|one| one == other)
    }

    /// Returns the platforms whose programs run here, best first, those of this architecture before
    /// others.
    fn runs(&self) -> Vec<Self> {
        let one = |architecture: &str, variant: String| Self {
            os: self.os.clone(),
            architecture: architecture.to_owned(),
            variant,
        };
        let arm = |highest: u32| {
            (5..=highest)
                .rev()
                .map(move |n| one("arm", format!("v{n}")))
        };
        let number = |variant: &str| {
            variant
                .strip_prefix('v')
                .and_then(|n| n.parse::<u32>().ok())
        };
        match (&*self.architecture, number(&self.variant)) {
            ("amd64", level) => {
                // Beyond the defined levels, only the stated one and the base are tried.
                let levels = (2..=level.unwrap_or(1).min(AMD64_LEVEL_MAX)).rev();
                let mut all = vec![self.clone()];
                all.extend(levels.map(|n| one("amd64", format!("v{n}"))));
                all.extend([one("amd64", String::new()), one("386", String::new())]);
                all.dedup();
                all
            }
            ("arm", Some(version)) => arm(version.min(8)).collect(),
            ("arm64", _) => {
                let versions = arm64_below(&self.variant);
                let versions = versions.into_iter().map(|variant| one("arm64", variant));
                versions.chain(arm(8)).collect()
            }
            _ => vec![self.clone()],
        }
    }
}

/// The highest defined level of amd64.
const AMD64_LEVEL_MAX: u32 = 4;
/// The highest defined minor version of Armv8; Armv9.N includes Armv8.(N+5).
const ARMV8_MINOR_MAX: u32 = 9;

/// Returns the variants of arm64 that run where `variant` does, best first.
fn arm64_below(variant: &str) -> Vec<String> {
    let (major, minor) = variant.split_once('.').unwrap_or((variant, "0"));
    let name = |major: &str, minor: u32| match (major, minor) {
        ("v8", 0) => String::new(),
        (major, 0) => major.to_owned(),
        (major, minor) => format!("{major}.{minor}"),
    };
    let down = |major: &'static str, from: u32| {
        (0..=from.min(ARMV8_MINOR_MAX))
            .rev()
            .map(move |minor| name(major, minor))
    };
    match (major, minor.parse::<u32>()) {
        ("" | "v8", Ok(minor)) => down("v8", minor).collect(),
        ("v9", Ok(minor)) => down("v9", minor)
            .chain(down("v8", minor.saturating_add(5)))
            .collect(),
        _ => vec![variant.to_owned(), String::new()],
    }
}

fn host_variant(architecture: &str) -> String {
    match architecture {
        "amd64" => format!("v{}", amd64_level()),
        "arm" => std::fs::read_to_string("/proc/cpuinfo")
            .ok()
            .and_then(|text| arm_version(&text))
            .unwrap_or_default(),
        _ => String::new(),
    }
}

/// Returns the level of this processor (x86-64 psABI, section 3.1.1), from the features that
/// `cpuid` reports.
#[cfg(target_arch = "x86_64")]
fn amd64_level() -> u32 {
    macro_rules! all {
        ($($feature:tt),*) => { $(std::is_x86_feature_detected!($feature))&&* };
    }
    if !all!("cmpxchg16b", "popcnt", "sse3", "ssse3", "sse4.1", "sse4.2") {
        1
    } else if !all!(
        "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave"
    ) {
        2
    } else if !all!("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl") {
        3
    } else {
        4
    }
}

#[cfg(not(target_arch = "x86_64"))]
const fn amd64_level() -> u32 {
    1
}

/// Returns the version of a 32-bit Arm processor in `/proc/cpuinfo`.
fn arm_version(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("CPU architecture"))?;
    let (_, version) = line.split_once(':')?;
    let digit = version.trim().chars().next().filter(char::is_ascii_digit)?;
    Some(format!("v{digit}"))
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    /// Parses `OS/ARCHITECTURE[/VARIANT]`, or one of the first two alone.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidPlatform(Printable::from(text));
        let parts: Vec<&str> = text.split('/').collect();
        let is_word = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
        };
        if !parts.iter().all(|part| is_word(part)) {
            return Err(invalid());
        }
        match *parts {
            [os, architecture] => Ok(Self::new(os, architecture, "")),
            [os, architecture, variant] => Ok(Self::new(os, architecture, variant)),
            [os] if SYSTEMS.contains(&&*os.to_lowercase()) => {
                let host = Self::host();
                Ok(Self::new(os, &host.architecture, &host.variant))
            }
            [architecture] => {
                let platform = Self::new("linux", architecture, "");
                if ARCHITECTURES.contains(&&*platform.architecture) {
                    Ok(platform)
                } else {
                    Err(invalid())
                }
            }
            _ => Err(invalid()),
        }
    }
}

/// Operating systems that may be named alone.
const SYSTEMS: [&str; 5] = ["linux", "windows", "darwin", "macos", "freebsd"];
/// Architectures that may be named alone.
const ARCHITECTURES: [&str; 9] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips64le", "ppc64le", "riscv64", "s390x",
];

impl fmt::Display for Platform {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |text: &str| Printable::from(text);
        write!(out, "{}/{}", show(&self.os), show(&self.architecture))?;
        if self.variant.is_empty() {
            Ok(())
        } else {
            write!(out, "/{}", show(&self.variant))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    /// Returns the texts that suit `host`, best first.
    fn ranked(host: &str, strict: bool, texts: &[&'static str]) -> Vec<&'static str> {
        let host = platform(host);
        let rank = |text: &&str| host.rank(&platform(text), strict);
        let mut fitting: Vec<_> = texts
            .iter()
            .copied()
            .filter(|t| rank(t).is_some())
            .collect();
        fitting.sort_by_key(|text| rank(text));
        fitting
    }

    #[test]
    fn variants_are_ranked_from_the_host_s_own_downwards() {
        let amd = [
            "linux/386",
            "linux/amd64",
            "linux/amd64/v2",
            "linux/amd64/v3",
            "linux/amd64/v9",
        ];
        assert_eq!(
            ranked("linux/amd64/v3", false, &amd),
            [
                "linux/amd64/v3",
                "linux/amd64/v2",
                "linux/amd64",
                "linux/386"
            ]
        );
        assert_eq!(ranked("linux/amd64", true, &amd), ["linux/amd64"]);
        let arm = [
            "linux/arm/v5",
            "linux/arm",
            "linux/arm/v8",
            "linux/arm64",
            "linux/arm64/v9",
        ];
        assert_eq!(
            ranked("linux/arm64", false, &arm),
            ["linux/arm64", "linux/arm/v8", "linux/arm", "linux/arm/v5"]
        );
        assert_eq!(
            ranked("linux/arm64/v9", true, &arm),
            ["linux/arm64/v9", "linux/arm64"]
        );
        assert_eq!(ranked("linux/arm/v6", false, &arm), ["linux/arm/v5"]);
        assert!(ranked("linux/amd64", false, &["windows/amd64", "linux/s390x"]).is_empty());
        assert_eq!(
            ranked("linux/riscv64", false, &["linux/riscv64"]),
            ["linux/riscv64"]
        );
        // A future level runs there, and all levels below it.
        assert_eq!(ranked("linux/amd64/v9", true, &amd)[0], "linux/amd64/v9");
    }

    #[test]
    fn other_words_for_a_platform_mean_the_same() {
        for (words, same) in [
            ("linux/x86_64", "linux/amd64"),
            ("Linux/amd64/v1", "linux/amd64"),
            ("linux/aarch64", "linux/arm64/v8"),
            ("linux/arm/7", "linux/armhf"),
            ("arm64", "linux/arm64"),
            ("linux/i386", "linux/386"),
            ("macos/arm64", "darwin/arm64"),
        ] {
            assert_eq!(platform(words), platform(same), "{words}");
        }
        assert_eq!(platform("linux"), Platform::host());
        for wrong in [
            "",
            "/",
            "linux/",
            "pdp11",
            "a/b/c/d",
            "linux/amd 64",
            "linux/\u{1b}",
        ] {
            assert!(wrong.parse::<Platform>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_host_runs_its_base_and_no_level_that_is_not_defined() {
        let host = Platform::host();
        let base = Platform::new("linux", host_architecture(), "");
        assert!(host.rank(&base, true).is_some());
        assert!(
            host.rank(&Platform::new("linux", "amd64", "v9"), false)
                .is_none()
        );
        assert_eq!(
            arm_version("x\nCPU architecture: 7\n").as_deref(),
            Some("v7")
        );
        assert_eq!(arm_version("CPU architecture: x"), None);
    }
}
