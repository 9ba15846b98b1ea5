"""Reports: one HTML page that shows what runs, evaluations, exports and benches came to."""
