"""Who leads, who gets which role, what a node waits for (spec/provider.md 4); sans-IO."""
