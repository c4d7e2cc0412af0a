"""What an audit costs compared with the bare model and with what people do today."""
