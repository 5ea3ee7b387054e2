import json
import logging
import subprocess
import time

import xenpm

logging.basicConfig(level=logging.INFO)


def sh(c):
    print("$", c)
    print(subprocess.run(c, shell=True, capture_output=True, text=True).stdout)


sh("xl list; xenstore-ls /local/domain/0/backend/pci; xenstore-ls /libxl; xl pci-list card")
with xenpm.Host() as host:
    for d in host.domains():
        print(d.ref, d.pci_devices, d.backends, d.frontends, repr(d.is_driver_domain))
    print("\n".join(host.topology().to_tree()))
    c = host.domain("card")
    sh("xenstore-read /local/domain/%d/data/ping" % c.domid)
    for i in range(3):
        s = c.suspend()
        print(json.dumps(s.to_dict()))
        time.sleep(1)
        r = c.resume()
        print(json.dumps(r.to_dict()))
        time.sleep(2)
        sh("xenstore-read /local/domain/%d/data/ping" % c.domid)
sh("tail -n 40 /var/log/xen/console/guest-card.log; lspci -vv -s 10.0 | head -50")
