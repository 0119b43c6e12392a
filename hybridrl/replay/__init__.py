"""Takes the policy update of a step bundle again, and finds what differs."""
