"""The admin of Django in a real Chromium: a login, a form, both with its protection (CSRF)."""

import pytest
from behind import WSGI, running, signed_in

SETTINGS = """
import django
from django.conf import settings
from django.contrib import admin
from django.urls import path
names = 'admin', 'auth', 'contenttypes', 'sessions', 'messages', 'staticfiles'
settings.configure(
    DEBUG=True,
    SECRET_KEY='a secret',
    ROOT_URLCONF='__main__',
    ALLOWED_HOSTS=['.rendezvous.localhost', '127.0.0.1'],
    SECURE_PROXY_SSL_HEADER=('HTTP_X_FORWARDED_PROTO', 'https'),
    SESSION_COOKIE_SECURE=True,
    CSRF_COOKIE_SECURE=True,
    SECURE_SSL_REDIRECT=True,
    INSTALLED_APPS=[f'django.contrib.{name}' for name in names],
    MIDDLEWARE=[
        'django.middleware.security.SecurityMiddleware',
        'django.contrib.sessions.middleware.SessionMiddleware',
        'django.middleware.csrf.CsrfViewMiddleware',
        'django.contrib.auth.middleware.AuthenticationMiddleware',
        'django.contrib.messages.middleware.MessageMiddleware',
    ],
    TEMPLATES=[{
        'BACKEND': 'django.template.backends.django.DjangoTemplates',
        'APP_DIRS': True,
        'OPTIONS': {'context_processors': [
            'django.template.context_processors.request',
            'django.contrib.auth.context_processors.auth',
            'django.contrib.messages.context_processors.messages',
        ]},
    }],
    DATABASES={'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': 'db'}},
    PASSWORD_HASHERS=['django.contrib.auth.hashers.MD5PasswordHasher'],
    STATIC_URL='static/',
)
django.setup()
urlpatterns = [path('admin/', admin.site.urls)]
from django.contrib.auth.models import User
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
call_command('migrate', verbosity=0)
User.objects.create_superuser('owner', '', 'a password')
application = StaticFilesHandler(get_wsgi_application())
"""


@pytest.fixture(scope='module')
def site(stage, tmp_path_factory):
    code = WSGI.format(SETTINGS)
    near = running(code, tmp_path_factory.mktemp('django'))
    with near as port, stage.hide(port, '--forwarded') as site:
        yield site


@pytest.mark.deadline(120)
def test_admin_logs_in_and_saves_by_name_and_by_digest(site, browser):
    browser.visit(signed_in(f'{site.unnamed}/admin/', f'{site.uuid}:any'))  # known from now on
    for url in site.named, site.unnamed:
        browser.visit(f'{url}/admin/auth/group/add/')
        browser.find('//input[@name="username"]').send_keys('owner')
        browser.find('//input[@name="password"]').send_keys('a password')
        browser.press('//input[@type="submit"]')
        browser.find('//input[@name="name"]').send_keys(url)
        browser.press('//input[@name="_save"]')
        browser.until_it_says(f'The group “{url}” was added successfully', 20)
        assert browser.url == f'{url}/admin/auth/group/'
