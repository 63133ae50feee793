# The options of the rendezvous server: `bin/run.sh` copies this file to local.py, where you change
# them. Each is shown with its default; one that you leave out keeps it.

options = {
    # The address or DNS name by which everybody reaches this server. It goes into the certificate
    # and into the files for the hidden servers. As long as it is a loopback one, nobody but this
    # machine can connect.
    'rendezvous_host': '127.0.0.1',
    # The port, for hidden servers and mobile clients alike.
    'rendezvous_port': 8899,
    # The address to listen on. None: loopback where rendezvous_host is loopback, else every
    # address, those of IPv6 included.
    'listen_host': None,
    # The key that `.venv/bin/python make_cert.py` makes, or that of Let's Encrypt (privkey.pem).
    # None means plain HTTP, for use behind something that terminates TLS.
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
    # Wrong codes that an address may try for one hidden server in 15 minutes; 0: any number, also
    # of the 100 for all together, as behind something that passes TLS on. More get it a 429 until
    # some are older than that.
    'wrong_codes_per_address': 10,
    # Wrong codes a day for one hidden server, of all addresses together that did not register it
    # within the last 30 days, and of each that did; 0: any number. Above that no short code is
    # right: hidden.py sends long ones. With codes of 8 digits, 50 a day have less than 1 chance in
    # 900 a year.
    'wrong_codes_per_day': 50,
    # UUIDs that are not here for which an address may ask within a minute; 0: any number. More get
    # their answers a second late, and twice as many none but a 429.
    'unknown_per_minute': 100,
    # Connections at a time; each costs about 28 KB, so that these need some 110 MB. Where there are
    # so many, a new one takes the place of the oldest that has not said yet who it is. Hidden
    # servers may have three quarters of them, and pipes as many.
    'max_connections': 4000,
    # Connections at a time from one address (in IPv6, a /64), which may be a whole company's; 0:
    # any number, as behind something that terminates TLS.
    'max_connections_per_address': 1000,
    # Open pipes at a time from one address to one hidden server; more get a 429. 0: any number, as
    # behind something that terminates TLS.
    'max_pipes_per_address': 100,
    # Worker processes that serve. None: as many as there are cores that this process may use, at
    # most 4.
    'workers': None,
    # Registrations of one hidden server that wait side by side; one more ends the oldest. Each
    # costs about 28 KB, so this bounds what one hidden server can take.
    'max_waiting': 32,
    # Seconds that a mobile client waits for a hidden server that was here within the last minute:
    # it registers again after each rendezvous, and a browser opens six connections at once.
    'rendezvous_wait': 10,
    # Seconds for which a hidden server that owes an answer may be silent once its mobile client
    # sends no more. One that has answered has one second, or this where it is less. Then the pipe
    # is closed.
    'drain': 5,
    # A name beside the loopback ones by which browsers may call the page of users_app.py, of a
    # proxy that encrypts, say. Each other name is refused: a foreign page may have made it ours.
    'page_host': None,
}
