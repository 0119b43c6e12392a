"""Rule rewards: a file's name is its name in `reward: {name: ...}`."""
