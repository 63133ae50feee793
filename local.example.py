# The options of the rendezvous server: `bin/run.sh` copies this file to local.py, where you change
# them. Each is shown with its default; one that you leave out keeps it.

options = {
    # The address or DNS name by which everybody reaches this server. It goes into the certificate
    # and into the files for the hidden servers. If it is a loopback one, only this machine can
    # connect.
    'rendezvous_host': '127.0.0.1',
    # The port, for hidden servers and mobile clients alike.
    'rendezvous_port': 8899,
    # Where each hidden server has a host name of its own: NAME.rendezvous.example.com for
    # 'rendezvous.example.com'. NAME is its UUID, or its label if you have switched that on. The DNS
    # must lead *.rendezvous.example.com here, too. None: there are no such names. To try it on one
    # machine: 'rendezvous.localhost'.
    'names_domain': None,
    # The address to listen on. None: loopback if rendezvous_host is loopback, else all addresses,
    # those of IPv6 included.
    'listen_host': None,
    # True: a proxy in front (HAProxy, a cloud's balancer) begins each connection with a PROXY
    # header, version 1 or 2, and the address in it counts as the client's. A connection without a
    # header is closed. Whoever connects without the proxy can claim any address: let nothing but
    # the proxy reach the port, for example by listen_host.
    'proxy_protocol': False,
    # The key that `.venv/bin/python make_cert.py` makes, or that of Let's Encrypt (privkey.pem).
    # None means plain HTTP, for use behind a proxy that terminates TLS. Without proxy_protocol all
    # clients seem to have the address of that proxy then.
    'key_file': 'registrar.key',
    # The certificate that goes with it (of Let's Encrypt: fullchain.pem).
    'crt_file': 'registrar.crt',
    # Redis holds the entries. None: the embedded one, with its data in data/. Otherwise the address
    # or DNS name of a Redis that you run.
    'redis_host': None,
    # The port of your Redis.
    'redis_port': 6379,
    # The password of your Redis, '' for none.
    'redis_auth': '',
    # Instead of these three, a Redis by its URL, with what they cannot say: a user's name, TLS
    # (rediss://), the number of a database. In a password write # as %23, as in any URL.
    #   redis://USER:PASSWORD@redis.example.com:6379/0
    #   rediss://USER:PASSWORD@redis.example.com:6379/0?ssl_ca_certs=redis-ca.crt
    #   unix:///run/redis/redis.sock?db=0
    #   redis+sentinel://USER:PASSWORD@192.0.2.1:26379,192.0.2.2:26379/SERVICE/0
    #   redis+cluster://USER:PASSWORD@192.0.2.1:6379,192.0.2.2:6379
    # Where Sentinels want a password, too, add ?sentinel_username=USER&sentinel_password=PASSWORD.
    'redis_url': '',
    # Several machines with one Redis are one rendezvous: a hidden server registers at any of them,
    # and a mobile client asks any of them. Each is a node: here is the address or DNS name by which
    # the other nodes reach this one. None: there are no others.
    'node_host': None,
    # The port for the first worker of this node; each further worker has the next one. Let nobody
    # but the other nodes reach them, if you can.
    'node_port': 8900,
    # The nodes recognize each other by this secret, of at least 32 characters, the same on all. '':
    # the first node makes one and puts it into Redis. This prints one:
    # .venv/bin/python -c 'import secrets; print(secrets.token_urlsafe())'
    'node_secret': '',
    # Wrong codes that an address may try for one hidden server in 15 minutes. Above the limit the
    # address gets a 429 until its oldest wrong codes are 15 minutes old. 0: nothing is counted by
    # address, and the limit of 100 for all UUIDs together is off, too. Behind a proxy that passes
    # TLS on, set proxy_protocol to True; if it cannot send PROXY headers, set this to 0.
    'wrong_codes_per_address': 10,
    # Wrong codes a day for one hidden server. All addresses that have not registered it within 30
    # days share this number; each other address has it for itself. Above the limit no short code
    # is right; hidden.py sends long ones. 50 a day for a year guess a code of 8 digits with
    # less than 1 chance in 900. 0: any number.
    'wrong_codes_per_day': 50,
    # How many UUIDs that are not connected one address may ask for in a minute, counted by each
    # worker. Above that, answers come a second late; above twice as many, 429. 0: any number.
    'unknown_per_minute': 100,
    # Connections at a time, shared evenly among the workers. Each costs about 28 KB, so 4000 need
    # some 110 MB. When there are so many, a new one takes the place of the oldest that is neither a
    # registration nor in a pipe. Hidden servers may have three quarters of them, and pipes as many.
    'max_connections': 4000,
    # Connections at a time from one address (in IPv6, a /64), which may be a whole company's.
    # 0: any number. Use 0 behind a proxy that sends no PROXY header.
    'max_connections_per_address': 1000,
    # Open pipes at a time from one address to one hidden server; more get a 429. 0: any number. Use
    # 0 behind a proxy that sends no PROXY header.
    'max_pipes_per_address': 100,
    # Worker processes that serve. None: as many as there are cores that this process may use, at
    # most 4.
    'workers': None,
    # Registrations of one hidden server that wait in each worker; one more ends the oldest. Each
    # costs about 28 KB, so this limits the memory that one hidden server can use.
    'max_waiting': 32,
    # Seconds that a mobile client waits for a hidden server that was here within the last minute:
    # it registers again after each rendezvous, and a browser opens six connections at once.
    'rendezvous_wait': 10,
    # Once the mobile client sends no more, the pipe is closed when the hidden server has sent
    # nothing for so many seconds; for one second (or this, if it is less) if it has answered.
    'drain': 5,
    # A name beside the loopback ones by which browsers may call the page of users_app.py, for
    # example the name of a TLS proxy. All other names are refused, because a foreign web page could
    # have pointed its name to this machine (DNS rebinding).
    'page_host': None,
    # The address of that page behind a TLS proxy: https://, a host, and a port or a path if there
    # is one: 'https://admin.example.com/rendezvous/'. Its host counts as page_host, the login link
    # begins with it, and the cookie of the login goes over HTTPS alone.
    'page_url': None,
    # The token with which Prometheus may fetch /metrics from that page, of at least 20 characters;
    # '': there is no such page. This prints a token:
    # .venv/bin/python -c 'import secrets; print(secrets.token_urlsafe())'
    'metrics_token': '',
}
