"""Pages and sheets to look at: what moved a number can be seen. No torch, no network, no build step."""
