"What a notebook's kernel holds."


def n_widgets():
    "Count the widgets that are open, in ipywidgets 7 and 8."
    from ipywidgets.widgets import widget
    return len(widget._instances if hasattr(widget, "_instances") else widget.Widget.widgets)
