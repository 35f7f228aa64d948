"""Drives the public device SDK against the hub; started by tests/hub/sdk.rs.

Argument: the file with the root certificate. Environment: HUB_CONNECTION_STRING.
Prints one line per step that the test waits for, and ends with an error if one fails.
"""

import os
import queue
import sys

from azure.iot.device import IoTHubDeviceClient, IoTHubModuleClient, Message


def main() -> None:
    connection = os.environ["HUB_CONNECTION_STRING"]
    with open(sys.argv[1], encoding="ascii") as file:
        roots = file.read()
    kind = IoTHubModuleClient if "ModuleId=" in connection else IoTHubDeviceClient
    client = kind.create_from_connection_string(connection, server_verification_cert=roots)
    client.connect()

    message = Message('{"t": 1}')
    message.message_id = "m-1"
    message.content_type = "application/json"
    message.content_encoding = "utf-8"
    message.custom_properties["alarm"] = "a b&c"
    client.send_message(message)

    twin = client.get_twin()
    assert twin["desired"]["$version"] == 1, twin
    client.patch_twin_reported_properties({"temperature": 21, "gone": 1})
    client.patch_twin_reported_properties({"gone": None})
    reported = client.get_twin()["reported"]
    assert reported == {"temperature": 21, "$version": 3}, reported

    changes = queue.Queue()
    client.on_twin_desired_properties_patch_received = changes.put
    print("listening", flush=True)
    change = changes.get(timeout=60)
    print("desired", change["color"], change["$version"], flush=True)
    client.shutdown()
    print("done", flush=True)


main()
