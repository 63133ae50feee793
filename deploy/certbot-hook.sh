#!/bin/sh
# Copies a renewed certificate to where the rendezvous server can read it, and has the server read
# it again: no connection is dropped. certbot runs this as root after each renewal:
#
#     sudo install -m 755 deploy/certbot-hook.sh /usr/local/sbin/rendezvous-certbot-hook
#     sudo certbot certonly --standalone -d rendezvous.example.com \
#         --deploy-hook /usr/local/sbin/rendezvous-certbot-hook
#
# root must run no file that another user can change, and must write into no folder of another user.
set -eu
new=${RENEWED_LINEAGE:?certbot sets it to the folder of the new files}
group=rendezvous       # of the user that the server runs as
folder=/etc/rendezvous # key_file and crt_file in local.py are in there

install -d -g "$group" -m 750 "$folder"
install -g "$group" -m 440 "$new/privkey.pem" "$folder"
install -g "$group" -m 444 "$new/fullchain.pem" "$folder"
# The server may be stopped: then it reads the new files when it starts.
! systemctl is-active --quiet rendezvous || systemctl reload rendezvous
