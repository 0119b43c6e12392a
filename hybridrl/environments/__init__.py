"""What a policy acts on in several turns: environments and tools, in processes that can be killed."""
