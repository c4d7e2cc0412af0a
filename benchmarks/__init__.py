"""What an audit costs beside the bare model and beside what people do today."""
