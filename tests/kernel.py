"What a notebook's kernel holds, and how a page asks it."
import secrets


def n_widgets():
    "Count the widgets that are open, in ipywidgets 7 and 8."
    from ipywidgets.widgets import widget
    return len(widget._instances if hasattr(widget, "_instances") else widget.Widget.widgets)


def send_cell(client, code, cell=None):
    "Ask a kernel to run code the way a page's cell does, and return the number of the request."
    content = dict(code=code, silent=False, store_history=True, user_expressions={}, allow_stdin=False, stop_on_error=True)
    message = client.session.msg("execute_request", content, metadata=dict(cellId=cell or secrets.token_hex(4)))
    client.shell_channel.send(message)
    return message["header"]["msg_id"]
