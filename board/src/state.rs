//! How a chip's state is saved and brought back.
//!
//! Saved types stand apart from running types and carry their version in the name (`UartV1`).
//! They are self-describing JSON values, so that a snapshot can be read without the machine.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Why a saved state was refused.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The section was written by a newer version of this program.
    #[error(
        "section {kind} has version {found}, this program knows up to {known}: restore it with a newer vmm"
    )]
    Version {
        /// The section's kind.
        kind: &'static str,
        /// The version in the snapshot.
        found: u32,
        /// The newest version that is understood.
        known: u32,
    },
    /// A field is missing, has the wrong type or a value outside its range.
    #[error("section {kind} is damaged ({cause}): take the snapshot again")]
    Damaged {
        /// The section's kind.
        kind: &'static str,
        /// What is wrong.
        cause: String,
    },
}

/// A chip, or a part of one, that can save its state.
///
/// `save` destructures `self` completely, so that a new field does not compile until someone has
/// decided whether it belongs to the saved state. `restore` makes no interrupt edge.
pub trait Snapshot {
    /// The section's kind, stable for good: `"uart16550"`.
    const KIND: &'static str;
    /// The version of `State`.
    const VERSION: u32;
    /// The saved form.
    type State: Serialize + DeserializeOwned;

    /// The state now.
    fn save(&self) -> Self::State;

    /// Takes on `state`.
    ///
    /// # Errors
    /// [`StateError::Damaged`] when a value is outside its range; nothing has changed then.
    fn restore(&mut self, state: Self::State) -> Result<(), StateError>;
}

/// [`Snapshot`] with the state's type erased, for a list of chips.
pub trait ErasedSnapshot {
    /// [`Snapshot::KIND`].
    fn kind(&self) -> &'static str;
    /// [`Snapshot::VERSION`].
    fn version(&self) -> u32;
    /// [`Snapshot::save`] as a JSON value.
    fn save_value(&self) -> Value;
    /// [`Snapshot::restore`] from what `save_value` gave in version `version`.
    ///
    /// # Errors
    /// A newer version, or a value that is not a state of this kind; nothing has changed then.
    fn restore_value(&mut self, version: u32, value: Value) -> Result<(), StateError>;
}

impl<T: Snapshot> ErasedSnapshot for T {
    fn kind(&self) -> &'static str {
        T::KIND
    }

    fn version(&self) -> u32 {
        T::VERSION
    }

    fn save_value(&self) -> Value {
        // Saved types are plain structs of numbers, strings and lists: JSON can hold them all.
        serde_json::to_value(self.save()).unwrap_or(Value::Null)
    }

    fn restore_value(&mut self, version: u32, value: Value) -> Result<(), StateError> {
        if version > T::VERSION {
            return Err(StateError::Version { kind: T::KIND, found: version, known: T::VERSION });
        }
        let state = serde_json::from_value(value)
            .map_err(|e| StateError::Damaged { kind: T::KIND, cause: e.to_string() })?;
        self.restore(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Chip {
        level: u8,
    }

    impl Snapshot for Chip {
        const KIND: &'static str = "chip";
        const VERSION: u32 = 2;
        type State = u8;
        fn save(&self) -> u8 {
            let Self { level } = *self;
            level
        }
        fn restore(&mut self, state: u8) -> Result<(), StateError> {
            self.level = state;
            Ok(())
        }
    }

    #[test]
    fn refuses_what_is_newer_or_damaged_and_keeps_its_state() {
        let mut chip = Chip { level: 7 };
        let saved = chip.save_value();
        assert!(matches!(
            chip.restore_value(3, saved.clone()),
            Err(StateError::Version { found: 3, known: 2, .. })
        ));
        assert!(matches!(chip.restore_value(2, Value::from("x")), Err(StateError::Damaged { .. })));
        assert_eq!(chip.level, 7);
        chip.level = 1;
        chip.restore_value(2, saved).unwrap();
        assert_eq!(chip.level, 7);
    }
}
