"""Evidence that the network simulator is right: experiments with a claim each, and the pages that show them."""
