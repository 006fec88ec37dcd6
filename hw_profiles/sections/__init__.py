"""What a part's numbers are, by the cost model that reads them: one schema each."""
