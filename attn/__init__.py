"""attn: what is measured. Implementations of attention, and what they share."""
