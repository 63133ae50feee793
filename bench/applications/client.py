"""Clients in Python, for clients.py: the name of one is the argument."""

import asyncio
import os
import ssl
import sys
import urllib.request

import aiohttp
import httpx
import requests
from requests.auth import HTTPBasicAuth, HTTPDigestAuth

URL, UUID, CA = os.environ['URL'], os.environ['UUID'], os.environ['CA']
with open(os.environ['BODY'], 'rb') as file:
    BODY = file.read()
CONTEXT = ssl.create_default_context(cafile=CA)


def of_requests(scheme) -> None:
    with requests.Session() as session:
        session.trust_env, session.verify, session.auth = False, CA, scheme(UUID, 'any')
        print(session.get(URL).text, session.post(URL, data=BODY).text)


def of_httpx(scheme) -> None:
    with httpx.Client(verify=CONTEXT, auth=scheme(UUID, 'any'), trust_env=False) as client:
        print(client.get(URL).text, client.post(URL, content=BODY).text)


async def of_aiohttp(**how) -> None:
    async with aiohttp.ClientSession(**how) as session:
        for method, data in (('GET', None), ('POST', BODY)):
            async with session.request(method, URL, data=data, ssl=CONTEXT) as answer:
                print(await answer.text())


def of_urllib(*handlers) -> None:
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    passwords.add_password(None, URL, UUID, 'any')
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=CONTEXT),
        *(handler(passwords) for handler in handlers),
    )
    for data in None, BODY:
        print(opener.open(URL, data).read().decode())


BASIC, DIGEST = urllib.request.HTTPBasicAuthHandler, urllib.request.HTTPDigestAuthHandler
CLIENTS = {
    'requests, Digest': lambda: of_requests(HTTPDigestAuth),
    'requests, Basic': lambda: of_requests(HTTPBasicAuth),
    'httpx, Digest': lambda: of_httpx(httpx.DigestAuth),
    'httpx, Basic': lambda: of_httpx(httpx.BasicAuth),
    'aiohttp, Digest': lambda: asyncio.run(
        of_aiohttp(middlewares=[aiohttp.DigestAuthMiddleware(UUID, 'any')])
    ),
    'aiohttp, Basic': lambda: asyncio.run(of_aiohttp(auth=aiohttp.BasicAuth(UUID, 'any'))),
    'urllib, Digest': lambda: of_urllib(DIGEST),
    'urllib, Basic': lambda: of_urllib(BASIC),
    'urllib, both': lambda: of_urllib(BASIC, DIGEST),
}

if __name__ == '__main__':
    CLIENTS[sys.argv[1]]()
